"""Where a cluster's memory goes: its processes by what they are for."""

from __future__ import annotations

from dataclasses import dataclass

from deployments.cli.members import members_of, title_of
from deployments.cli.place import HEAD_MODULE
from deployments.names import INGRESS_APPLICATION, model_of_application, model_of_pools
from deployments.processes import parent_of, proportional_memory

HEAD, RAY, INGRESS, REPLICAS, ENGINES, POOLS = "head", "ray", "ingress", "replicas", "engines", "pools"
GROUPS = (HEAD, RAY, INGRESS, REPLICAS, ENGINES, POOLS)

_REPLICA_TITLE = "ray::ServeReplica:"
_MAX_DEPTH = 16


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """Processes with one purpose."""

    name: str
    """One of `GROUPS`."""
    model: str | None
    """The model that replicas, engines and expert pools belong to."""
    pids: tuple[int, ...]
    pss_bytes: int
    """Proportional set size: what they share among each other counts once."""


def measure(cluster_id: str, head: int) -> tuple[ProcessGroup, ...]:
    """The groups of a running cluster, in the order of `GROUPS`. Reads /proc; takes tens of milliseconds."""
    pids = {head, *members_of(cluster_id, head)}
    titles = {pid: title_of(pid) for pid in pids}
    members: dict[tuple[str, str | None], list[int]] = {}
    for pid in sorted(pids):
        members.setdefault(_group(pid, head, titles), []).append(pid)
    groups = (
        ProcessGroup(name, model, tuple(found), proportional_memory(found)) for (name, model), found in members.items()
    )
    return tuple(sorted(groups, key=lambda group: (GROUPS.index(group.name), group.model or "")))


def _group(pid: int, head: int, titles: dict[int, str]) -> tuple[str, str | None]:
    if pid == head or HEAD_MODULE in titles[pid]:
        return HEAD, None
    own = _application(titles[pid])
    if own is not None and model_of_pools(own) is not None:
        return POOLS, model_of_pools(own)
    if own is not None:
        return (INGRESS, None) if own == INGRESS_APPLICATION else (REPLICAS, model_of_application(own) or own)
    ancestor = parent_of(pid)
    for _ in range(_MAX_DEPTH):
        if ancestor is None or ancestor not in titles:
            break
        application = _application(titles[ancestor])
        if application == INGRESS_APPLICATION:
            return INGRESS, None
        if application is not None:
            return ENGINES, model_of_application(application) or application
        ancestor = parent_of(ancestor)
    return RAY, None


def _application(title: str) -> str | None:
    """The Serve application that an actor belongs to, from the title that Ray gives its process."""
    if not title.startswith(_REPLICA_TITLE):
        return None
    return title.removeprefix(_REPLICA_TITLE).split(":", 1)[0]
