"""Everything that `pointsman status` tells, gathered from the state file, the ingress and /proc."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from cluster.telemetry import metric_table
from deployments.cli.api import Api, ApiUnreachableError
from deployments.cli.errors import CliError
from deployments.cli.follow import ModelReadiness, Readiness
from deployments.cli.memory import ProcessGroup, measure
from deployments.head.state import ClusterState, ModelState, Phase
from deployments.paths import traces_path


class ModelEntry(msgspec.Struct, frozen=True):
    """What is used of a model in `/v1/models`."""

    id: str
    kind: str = ""
    roles: list[str] = []
    engine: str = ""
    max_model_len: int | None = None


class ModelList(msgspec.Struct, frozen=True):
    """`/v1/models`."""

    data: list[ModelEntry] = []


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model. None: not known, because the ingress did not say."""

    name: str
    phase: str
    message: str
    ready_after_s: float | None
    kind: str | None = None
    roles: tuple[str, ...] | None = None
    engine: str | None = None
    replicas: int | None = None
    """Replicas that take requests."""
    running: int | None = None
    waiting: int | None = None
    kv_usage: float | None = None
    """The fullest replica's, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A running cluster at one moment."""

    state: ClusterState
    models: tuple[ModelStatus, ...]
    answering: bool
    """Whether the ingress answers at all."""
    remarks: tuple[str, ...]
    """What could not be found out, and why."""
    uptime_s: float
    groups: tuple[ProcessGroup, ...]
    trace_store_bytes: int


@dataclass(frozen=True, slots=True)
class _Load:
    running: int
    waiting: int
    kv_usage: float | None
    """None for an engine without a KV pool."""


_EMPTY: Final = _Load(0, 0, None)


def take_snapshot(state: ClusterState, state_dir: Path, key: str | None) -> Snapshot:
    """Gather it; what does not answer is left out and named in `remarks`."""
    api = Api(state.url, key)
    remarks: list[str] = []
    readiness = Readiness()
    entries: dict[str, ModelEntry] = {}
    load: dict[str, _Load] | None = None
    answering = True
    try:
        readiness = api.get("/readyz", Readiness, accept=(200, 503))
        entries = {entry.id: entry for entry in api.get("/v1/models", ModelList).data}
        load = read_load(api.text("/metrics").decode("utf-8", "replace"))
    except ApiUnreachableError as error:
        answering = False
        remarks.append(error.message)
    except CliError as error:
        remarks.append(f"the ingress did not tell everything: {error.message} {error.remedy or ''}".strip())
    models = []
    for name, model in state.models.items():
        entry, ready = entries.get(name), readiness.models.get(name)
        carried = (load.get(name, _EMPTY) if load is not None else None) if entry is not None else None
        models.append(
            ModelStatus(
                name=name,
                phase=model.phase.value,
                message=_message(model, ready),
                ready_after_s=model.ready_after_s,
                kind=entry.kind if entry is not None else None,
                roles=tuple(entry.roles) if entry is not None else None,
                engine=entry.engine if entry is not None else None,
                replicas=ready.replicas if ready is not None else None,
                running=carried.running if carried is not None else None,
                waiting=carried.waiting if carried is not None else None,
                kv_usage=carried.kv_usage if carried is not None else None,
            )
        )
    return Snapshot(
        state=state,
        models=tuple(models),
        answering=answering,
        remarks=tuple(remarks),
        uptime_s=max(0.0, time.time() - state.started_at),
        groups=measure(state.cluster_id, state.pid),
        trace_store_bytes=_store_bytes(traces_path(state_dir)),
    )


def _message(model: ModelState, ready: ModelReadiness | None) -> str:
    if model.message or model.phase is not Phase.READY or ready is None:
        return model.message
    return ready.reason or ""


def read_load(text: str) -> dict[str, _Load]:
    """Load by model, added up over its replicas, out of Prometheus's text format."""
    from prometheus_client.parser import text_string_to_metric_families

    wanted = {
        metric.name
        for metric in (
            metric_table.ENGINE_RUNNING,
            metric_table.ENGINE_WAITING,
            metric_table.KV_USAGE,
            metric_table.KV_BLOCKS,
        )
    }
    found: dict[str, dict[str, list[float]]] = {}
    for family in text_string_to_metric_families(text):
        if family.name in wanted:
            for sample in family.samples:
                of_model = found.setdefault(sample.labels.get("model", ""), {})
                of_model.setdefault(family.name, []).append(sample.value)
    return {
        model: _Load(
            running=int(sum(values.get(metric_table.ENGINE_RUNNING.name, ()))),
            waiting=int(sum(values.get(metric_table.ENGINE_WAITING.name, ()))),
            kv_usage=max(values.get(metric_table.KV_USAGE.name, ()), default=0.0)
            if any(values.get(metric_table.KV_BLOCKS.name, ()))
            else None,
        )
        for model, values in found.items()
    }


def _store_bytes(path: Path) -> int:
    total = 0
    for suffix in ("", "-wal"):
        try:
            total += path.with_name(path.name + suffix).stat().st_size
        except OSError:
            continue
    return total
