"""What changed between two configs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

from cluster.config.cluster import ClusterConfig
from cluster.config.yaml_document import join


@dataclass(frozen=True, slots=True)
class Change:
    """One field that differs. `old` is None where it was added, `new` is None where it was removed."""

    path: str
    old: Any
    new: Any
    keys: tuple[str, ...] = ()
    """The path, step by step: the names of models hold dots at times."""


def config_diff(old: ClusterConfig, new: ClusterConfig) -> tuple[Change, ...]:
    """Every field that differs, by path. Lists count as one field."""
    return tuple(_changes((), old.model_dump(mode="json"), new.model_dump(mode="json")))


def _changes(keys: tuple[str, ...], old: object, new: object) -> Iterator[Change]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _changes((*keys, str(key)), old.get(key), new.get(key))
    elif old != new:
        yield Change(reduce(join, keys, ""), old, new, keys)
