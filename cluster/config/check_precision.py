"""Checks on `precision` and on what models say about it: levels can be left again, and every twin can answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from cluster.config.base import Kind
from cluster.config.mistakes import Mistake
from cluster.config.precision import ModelPrecisionConfig, PrecisionConfig

if TYPE_CHECKING:
    from cluster.config.cluster import ClusterConfig

_WITHOUT: Final = {Kind.ENCODER: "an encoder", Kind.EXTERNAL: "an external model"}
"""Kinds without a KV cache of ours."""


def check_precision(config: ClusterConfig) -> Iterator[Mistake]:
    """Mistakes in `precision` and in every `models.NAME.precision`."""
    yield from _check_thresholds(config.precision)
    for field in ("levels", "best_effort"):
        listed = getattr(config.precision, field)
        for index, one in enumerate(listed):
            if one in listed[:index]:
                yield Mistake(f"precision.{field}.{index}", f"{one} stands here twice", "leave one out")
    for name in config.models:
        yield from _check_model(config, name)


def _check_thresholds(precision: PrecisionConfig) -> Iterator[Mistake]:
    enter, leave = precision.enter, precision.leave
    if leave.kv_usage >= enter.kv_usage:
        yield Mistake("precision.leave.kv_usage", "this is not below that of enter", "lower it or raise that of enter")
    if leave.preemptions_per_s >= enter.preemptions_per_s:
        yield Mistake(
            "precision.leave.preemptions_per_s", "this is not below that of enter", "lower it or raise that of enter"
        )


def _check_model(config: ClusterConfig, name: str) -> Iterator[Mistake]:
    path, model = f"models.{name}.precision", config.models[name]
    if model.kind in _WITHOUT:
        for field in ModelPrecisionConfig.model_fields:
            # The values are compared, not what was written: a config in force has every default in it.
            if getattr(model.precision, field) != getattr(ModelPrecisionConfig(), field):
                yield Mistake(f"{path}.{field}", f"{_WITHOUT[model.kind]} does not have this setting", "leave it out")
        return
    pinned = model.precision.pinned
    if pinned is not None and pinned > len(config.precision.levels):
        yield Mistake(f"{path}.pinned", "there are not so many levels", "lower it or add to precision.levels")
    yield from _check_twin(config, name, f"{path}.twin")


def _check_twin(config: ClusterConfig, name: str, path: str) -> Iterator[Mistake]:
    twin = config.models[name].precision.twin
    if twin is None:
        return
    other = config.models.get(twin)
    if other is None:
        yield Mistake(path, f"there is no model {twin}", "name a model of this config")
    elif twin == name:
        yield Mistake(path, "a model is not its own twin", "name another or leave it out")
    elif other.kind in _WITHOUT:
        yield Mistake(path, f"{_WITHOUT[other.kind]} cannot stand in for this model", "name another")
    elif other.precision.twin is not None:
        yield Mistake(path, f"{twin} has a twin itself, so requests would move on", "name that one or leave one out")
