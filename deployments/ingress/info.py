"""The routes that tell of the cluster: liveness, readiness, models, metrics, usage."""

from __future__ import annotations

import json
import time

from cluster.api.errors import ApiError
from cluster.config.engine import EngineType
from cluster.keys import KeyRecord
from deployments.ingress.exchange import Exchange
from deployments.ingress.services import Services
from deployments.telemetry.exposition import accepted
from deployments.telemetry.metrics import ReplicaStats

READY, SILENT, PARKED = "ready", "silent", "parked"
"""States of a replica in the metrics."""
EXCLUDE_MODELS = b"exclude=models"


class InfoPages:
    """Handlers of one ingress."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._created = int(time.time())

    async def live(self, exchange: Exchange, _key: KeyRecord | None) -> None:
        """200 as long as the event loop turns."""
        await exchange.respond(200, b'{"status":"alive"}')

    async def ready(self, exchange: Exchange, _key: KeyRecord | None) -> None:
        """200 once every model can take a request or is parked, else 503; either way it names each model's state.

        With `?exclude=models` (as the API server of Kubernetes has it) only this ingress counts. One that is to stop is not ready.
        """
        health = self._services.health.models()
        alone = EXCLUDE_MODELS in exchange.scope["query_string"].split(b"&")
        everything = alone or all(model.healthy or model.parked for model in health.values())
        models = {
            name: {"ready": model.healthy, "replicas": model.ready_replicas, "reason": model.reason or None}
            for name, model in health.items()
        }
        takes = everything and not self._services.health.leaving
        status = "stopping" if self._services.health.leaving else "ready" if everything else "not ready"
        await exchange.respond(200 if takes else 503, json.dumps({"status": status, "models": models}).encode())

    async def models(self, exchange: Exchange, _key: KeyRecord | None) -> None:
        """The portfolio in OpenAI's form, with kinds, roles and engines."""
        entries = [self._entry(name) for name in self._services.config.models]
        await exchange.respond(200, json.dumps({"object": "list", "data": entries}).encode())

    async def model(self, exchange: Exchange, _key: KeyRecord | None) -> None:
        """One model of the portfolio. Raises `ApiError` 404 for a name that is none."""
        name = exchange.scope["path"].removeprefix("/v1/models/")
        models = self._services.config.models
        if name not in models:
            raise ApiError(
                404, "model_not_found", f"No such model. Models: {', '.join(sorted(models))}.", param="model"
            )
        await exchange.respond(200, json.dumps(self._entry(name)).encode())

    def _entry(self, name: str) -> dict[str, object]:
        model = self._services.config.models[name]
        simulated = model.engine.type is EngineType.SIMULATED
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "pointsman (simulated engine)" if simulated else "pointsman",
            "kind": model.kind.value,
            "roles": list(model.roles),
            "engine": model.engine.type.value,
            "max_model_len": model.engine.max_model_len,
            "ready": self._services.health.models()[name].healthy,
        }

    async def metrics(self, exchange: Exchange, _key: KeyRecord | None) -> None:
        """Prometheus's text format, or OpenMetrics for who prefers it."""
        services = self._services
        attached = services.channel.attached()
        health = services.health.models()
        states: dict[tuple[str, str], int] = {}
        for model in services.config.models:
            ready = len(services.channel.replicas(model))
            states[model, READY] = ready
            states[model, SILENT] = sum(1 for replica in attached if replica.hello.model == model) - ready
            # Not a replica, but why there is none.
            states[model, PARKED] = int(health[model].parked)
        services.metrics.set_replicas(
            (
                ReplicaStats(
                    replica.hello.model, replica.hello.replica_id, replica.stats, services.precision.level_of(replica)
                )
                for replica in attached
            ),
            states,
        )
        form = accepted(exchange.header("accept"))
        await exchange.respond(200, services.metrics.render(form), content_type=form.content_type)

    async def usage(self, exchange: Exchange, key: KeyRecord | None) -> None:
        """What the calling key has used so far."""
        if key is None:
            raise ApiError(
                400, "no_key", "Usage is counted per key, and this request has none: send `Authorization: Bearer ...`."
            )
        await exchange.respond(200, json.dumps(self._services.gate.usage_of(key)).encode())
