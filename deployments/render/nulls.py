"""Fields that are null where their default is not: Helm drops every null from a chart's values, so these travel by their path."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from cluster.config.cluster import ClusterConfig
from cluster.config.in_force import in_force

Path = list[str]


def document(config: ClusterConfig) -> dict[str, Any]:
    """The config with every default filled in, without nulls."""
    pruned: dict[str, Any] = _without(in_force(config))
    return pruned


def nulls(config: ClusterConfig) -> list[Path]:
    """Paths of the nulls in it that mean something else than leaving the field out."""
    left_out = in_force(ClusterConfig.model_validate(document(config)))
    return [path for path in _nulls(in_force(config), []) if _at(left_out, path) is not None]


def with_nulls(value: dict[str, Any], paths: Sequence[Sequence[str]]) -> dict[str, Any]:
    """`value` with these fields null."""
    made = copy.deepcopy(value)
    for *above, last in paths:
        holder = made
        for step in above:
            holder = holder.setdefault(step, {})
        holder[last] = None
    return made


def _without(value: Any) -> Any:  # noqa: ANN401 - JSON values
    if isinstance(value, dict):
        return {key: _without(inner) for key, inner in value.items() if inner is not None}
    return value


def _nulls(value: dict[str, Any], path: Path) -> Iterator[Path]:
    for key, inner in value.items():
        if inner is None:
            yield [*path, key]
        elif isinstance(inner, dict):
            yield from _nulls(inner, [*path, key])


def _at(value: dict[str, Any], path: Path) -> object:
    found: Any = value
    for step in path:
        found = found.get(step) if isinstance(found, dict) else None
    return found
