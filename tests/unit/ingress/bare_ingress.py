"""An ingress without Ray: everything of it is real but the models, whose replicas do as a test tells them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ray.serve.handle import DeploymentHandle

from cluster.config.cluster import ClusterConfig
from cluster.routing.resolve import Policy
from cluster.routing.snapshot import ModelState
from deployments.access.gate import Gate
from deployments.channel.messages import Hello
from deployments.channel.receiver import AttachedReplica, ChannelReceiver
from deployments.channel.sender import IngressAddress
from deployments.channel.stream import ReplicaLostError, TokenStream
from deployments.engines.protocol import EngineReply, TokenUsage
from deployments.ingress.admission import AdmissionControl
from deployments.ingress.app import IngressApp
from deployments.ingress.dispatch import ModelClient
from deployments.ingress.experts import ExpertsControl
from deployments.ingress.health import Health
from deployments.ingress.intent import IntentReader
from deployments.ingress.pools import Ask, PoolsControl
from deployments.ingress.precision import PrecisionControl
from deployments.ingress.recent import RecentAnswers
from deployments.ingress.services import Services
from deployments.ingress.waking import Waking
from deployments.replica.spec import ReplicaCall
from deployments.telemetry.metrics import IngressMetrics
from deployments.telemetry.setup import setup_telemetry

ADDRESS = IngressAddress("bare", "127.0.0.1", 1, "secret")
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'

Behaviour = Callable[[TokenStream, ReplicaCall], None]
"""What a replica does with a call: it feeds, finishes or fails the stream."""


def answer(stream: TokenStream, call: ReplicaCall) -> None:
    """A replica that answers at once."""
    usage = TokenUsage(prompt_tokens=7, completion_tokens=2)
    if call.request.body.get("stream"):
        stream.feed(EVENT * 2)
        stream.finish(EngineReply(200, usage=usage, finish_reason="stop"))
    else:
        body = json.dumps({"model": call.request.body["model"], "choices": [{"index": 0}]}).encode()
        stream.finish(EngineReply(200, body, usage, "stop"))


def die(stream: TokenStream, _: ReplicaCall) -> None:
    """A replica that is lost before its first event."""
    stream.fail(ReplicaLostError("that died"))


class _Done:
    """Serve's side of a call that has ended."""

    def __await__(self) -> Generator[object, None, object]:
        yield from asyncio.sleep(0).__await__()
        return None

    def cancel(self) -> None:
        """Nothing is left to cancel."""


class ScriptedClient(ModelClient):
    """All replicas of one model. `up` says whether there are any."""

    def __init__(self, model: str, channel: ChannelReceiver, behaviour: Behaviour) -> None:
        super().__init__(model, cast("DeploymentHandle[object]", None), channel, ADDRESS, f"model-{model}")
        self.behaviour = behaviour
        self.up = True
        self.calls: list[ReplicaCall] = []
        self.woken: list[float] = []
        """Limits, seconds, with which it was woken."""

    def wake(self, limit_s: float) -> None:
        self.woken.append(limit_s)

    def available(self) -> bool:
        return self.up

    def call(self, call: ReplicaCall) -> _Done:
        self.calls.append(call)
        _, stream = self.channel._waiting[call.stream]
        hello = Hello("secret", f"replica-{self.model}", self.model, "scripted", 1, ())
        stream.replica = AttachedReplica(hello, cast("asyncio.StreamWriter", _NoWriter()), 0.0)
        self.behaviour(stream, call)
        return _Done()


class _NoWriter:
    def is_closing(self) -> bool:
        return True


class FixedHealth(Health):
    """Models are as healthy as their clients say, unless a test knows of a death that the ingress does not."""

    def __init__(self, clients: Mapping[str, ScriptedClient], believed: bool | None = None) -> None:
        self._scripted = clients
        self.believed = believed
        self.waking = Waking()
        self.leaving = False

    def models(self) -> dict[str, ModelState]:
        return {name: self._of(name, client) for name, client in self._scripted.items()}

    def _of(self, name: str, client: ScriptedClient) -> ModelState:
        up = client.up if self.believed is None else self.believed
        parked = None if up else self.waking.state(name)
        return ModelState(int(up), "gone") if parked is None else parked


@dataclass
class Reply:
    """What the application sent."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    whole: bool = False
    """Whether the body was ended."""

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found


class BareIngress:
    """Calls the application as the HTTP server would."""

    def __init__(self, services: Services, clients: dict[str, ScriptedClient], health: FixedHealth) -> None:
        self.app = IngressApp(services)
        self.services = services
        self.clients = clients
        self.health = health

    async def request(self, method: str, path: str, body: bytes = b"", **headers: str) -> Reply:
        """One request; header names are written with underscores."""
        sent = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
        if body:
            sent.append((b"content-length", str(len(body)).encode()))
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": sent,
        }
        incoming = [{"type": "http.request", "body": body, "more_body": False}]
        reply = Reply()

        async def receive() -> dict[str, Any]:
            if incoming:
                return incoming.pop()
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                reply.status = message["status"]
                reply.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                reply.body += message["body"]
                reply.whole = not message["more_body"]

        await self.app(scope, receive, send)
        return reply

    async def post(self, path: str, body: object, **headers: str) -> Reply:
        """A POST of `body` as JSON, or of the bytes as they are."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.request("POST", path, raw, **headers)


def no_pools(application: str) -> Ask:
    """Nobody can be asked how they stand."""

    async def ask() -> bytes:
        raise ConnectionError(application)

    return ask


@asynccontextmanager
async def bare_ingress(
    config: ClusterConfig, state_dir: Path, asking: Callable[[str], Ask] = no_pools
) -> AsyncIterator[BareIngress]:
    """An ingress for `config` whose models answer at once; `asking` is what asks about the pools of an application."""
    channel = ChannelReceiver("bare")
    clients = {name: ScriptedClient(name, channel, answer) for name in config.models}
    health = FixedHealth(clients)
    health.waking.follow(config.models, clients)
    gate = Gate(config, state_dir)
    gate.start()
    telemetry = setup_telemetry("ingress", config.telemetry, state_dir, environ={}, set_global=False)
    metrics = IngressMetrics("ingress", config.models)
    admission = AdmissionControl(config, channel, metrics)
    services = Services(
        config=config,
        policy=Policy(config),
        clients=clients,
        channel=channel,
        health=health,
        intents=IntentReader(config, clients),
        recent=RecentAnswers(config.models),
        gate=gate,
        admission=admission,
        precision=PrecisionControl(config, channel, admission.waiting, lambda _: None),
        experts=ExpertsControl(config, channel, metrics),
        pools=PoolsControl(config, clients, metrics, asking),
        metrics=metrics,
        telemetry=telemetry,
        trusted=not config.keys_required,
        waking=health.waking,
    )
    try:
        yield BareIngress(services, clients, health)
    finally:
        await gate.stop()
        await asyncio.to_thread(telemetry.close)
