"""The ingress as a Ray Serve deployment."""

from __future__ import annotations

import asyncio
import logging
import uuid
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus

from cluster.config.cluster import ClusterConfig
from cluster.config.host import is_loopback
from cluster.records.precision_change import PrecisionChange
from cluster.routing.resolve import Policy
from deployments.access.gate import Gate
from deployments.channel.receiver import ChannelReceiver
from deployments.ingress.admission import AdmissionControl
from deployments.ingress.dispatch import ModelClient
from deployments.ingress.experts import ExpertsControl
from deployments.ingress.health import Health
from deployments.ingress.intent import IntentReader
from deployments.ingress.live import LiveApp, Told, attach
from deployments.ingress.loop import keep_responsive, watch_lag
from deployments.ingress.pools import PoolsControl
from deployments.ingress.pools_asking import asking
from deployments.ingress.precision import PrecisionControl
from deployments.ingress.recent import RecentAnswers
from deployments.ingress.server import IngressServer
from deployments.ingress.services import Services
from deployments.ingress.waking import Waking
from deployments.names import MODEL_DEPLOYMENT, model_application_name
from deployments.paths import logs_path
from deployments.records.recorder import Records
from deployments.router_state import STATE as ROUTER_STATE
from deployments.serve_internals import bind_replica_server_to_node
from deployments.telemetry.logs import setup_logging
from deployments.telemetry.metrics import IngressMetrics
from deployments.telemetry.setup import setup_telemetry

_log = logging.getLogger(__name__)


class Ingress:
    """Serve's view of an ingress. It listens itself; Serve keeps it alive, and routes its calls to the replicas."""

    async def __init__(self, config: ClusterConfig, state_dir: Path) -> None:  # type: ignore[misc]  # Serve awaits it
        bind_replica_server_to_node()
        self._logs = setup_logging("ingress", logs_path(state_dir), level=config.telemetry.log_level)
        self._telemetry = setup_telemetry("ingress", config.telemetry, state_dir)
        self._metrics = IngressMetrics(
            "ingress", config.models, spans=self._telemetry.counts, log_lines_dropped=lambda: self._logs.dropped
        )
        self._channel = ChannelReceiver(
            uuid.uuid4().hex, on_lost=lambda replica: self._metrics.engine_died(replica.hello.model, "connection_lost")
        )
        address = await self._channel.start(_node_address(config))
        ROUTER_STATE.channel = self._channel

        def client_of(model: str, application: str) -> ModelClient:
            # Not `serve.get_deployment_handle`, which insists on a deployment that exists: the ingress starts first.
            handle: DeploymentHandle[object] = DeploymentHandle(MODEL_DEPLOYMENT, application)
            return ModelClient(model, handle, self._channel, address, application)

        clients = {name: client_of(name, model_application_name(name)) for name in config.models}
        recent = RecentAnswers(config.models)
        waking = Waking()
        waking.follow(config.models, clients)
        self._pools = PoolsControl(config, clients, self._metrics, asking)
        self._pools.start()
        self._health = Health(
            clients, self._channel, ROUTER_STATE.replicas, recent, waking, impaired=self._pools.impairment
        )
        self._health.start()
        self._gate = Gate(config, state_dir)
        self._gate.start()
        self._records = Records(config.records, state_dir, self._channel, "ingress")
        self._records.start()
        self._metrics.also(self._records.families)
        admission = AdmissionControl(config, self._channel, self._metrics)
        self._precision = PrecisionControl(config, self._channel, admission.waiting, self._stepped)
        self._precision.start()
        self._experts = ExpertsControl(config, self._channel, self._metrics)
        self._experts.start()
        services = Services(
            config=config,
            policy=Policy(config),
            clients=clients,
            channel=self._channel,
            health=self._health,
            intents=IntentReader(config, clients),
            recent=recent,
            gate=self._gate,
            admission=admission,
            precision=self._precision,
            experts=self._experts,
            pools=self._pools,
            metrics=self._metrics,
            telemetry=self._telemetry,
            trusted=not config.keys_required and is_loopback(config.ingress.host),
            waking=waking,
            records=self._records,
        )
        self._app = LiveApp(services, client_of)
        self._server = IngressServer(self._app, config.ingress)
        await _attach_present(config, clients)
        await self._server.start()
        keep_responsive()
        self._lag = asyncio.get_running_loop().create_task(watch_lag(self._metrics.set_loop_lag))
        _log.info("listening", extra={"host": config.ingress.host, "port": config.ingress.port})

    async def reconfigure(self, told: dict[str, Any] | None) -> None:
        """Serve calls it with what the head process has an ingress told since it started: another config."""
        if told is not None:
            await self._app.follow(Told.read(told), self._server)
            _log.info("another config is in force")

    def _stepped(self, change: PrecisionChange) -> None:
        """A replica went to another level by an order of this ingress."""
        self._metrics.stepped(change)
        self._records.changed(change)

    def check_health(self) -> None:
        """Serve's health check: the event loop answered, which is all there is to check."""
        if self._server.stopped:
            raise RuntimeError("the HTTP server of the ingress has stopped")

    async def __del__(self) -> None:
        """Serve awaits this when it stops an ingress gracefully: others send elsewhere first, and running requests end."""
        if not hasattr(self, "_lag"):
            return
        self._health.leaving = True
        await self._server.stop(self._app.config.ingress.lame_duck_s)
        self._lag.cancel()
        self._precision.stop()
        self._experts.stop()
        self._pools.stop()
        self._health.stop()
        await self._gate.stop()
        await self._records.stop()
        await self._channel.close()
        await asyncio.to_thread(self._telemetry.close)
        self._logs.close()


async def _attach_present(config: ClusterConfig, clients: dict[str, ModelClient]) -> None:
    """An ingress that takes another one's place takes requests once it reaches the models that the other one did.

    When a cluster starts, there are none yet.
    """
    try:
        applications = (await asyncio.to_thread(serve.status)).applications
    except Exception as error:  # noqa: BLE001 - Serve's controller may be away; then requests wait for replicas one by one
        _log.warning("which models run is not known: %s", type(error).__name__)
        return
    present = []
    for name, client in clients.items():
        found = applications.get(client.application)
        # One that may be parked has nobody to attach.
        if config.models[name].replicas.min and found is not None and found.status is ApplicationStatus.RUNNING:
            present.append(client)
    await asyncio.gather(*map(attach, present))


def _node_address(config: ClusterConfig) -> str:
    """Where replicas reach this ingress: loopback as long as the whole cluster is one machine of our own."""
    if config.ray.address is None:
        return "127.0.0.1"
    return str(ray.util.get_node_ip_address())
