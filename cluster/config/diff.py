"""What changed between two configs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cluster.config.cluster import ClusterConfig
from cluster.config.yaml_document import join


@dataclass(frozen=True, slots=True)
class Change:
    """One field that differs. `old` is None where it was added, `new` is None where it was removed."""

    path: str
    old: Any
    new: Any


def config_diff(old: ClusterConfig, new: ClusterConfig) -> tuple[Change, ...]:
    """Every field that differs, by path. Lists count as one field."""
    return tuple(_changes("", old.model_dump(mode="json"), new.model_dump(mode="json")))


def _changes(path: str, old: object, new: object) -> Iterator[Change]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _changes(join(path, key), old.get(key), new.get(key))
    elif old != new:
        yield Change(path, old, new)
