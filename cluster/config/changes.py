"""What of a new config a running cluster can take on, and in which way: a pure comparison of two configs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cluster.config.cluster import ClusterConfig
from cluster.config.diff import Change, config_diff


class Way(StrEnum):
    """How a change of one field comes into force."""

    LIVE = "live"
    """Requests that come after it are served by the new value; those under way keep the old one."""
    SCALE = "scale"
    """The model's replicas stay; their number, or what each takes, changes."""
    REPLACE = "replace"
    """New replicas are loaded, take over, and the old ones finish what they have."""
    ADD = "add"
    """A model that was not there: it is routed to once it is ready."""
    REMOVE = "remove"
    """A model that is no longer there: it finishes what it has."""
    RESTART = "restart"
    """Only `pointsman down` and `pointsman up` bring it into force."""


_LIVE_OF_MODELS: Final = ("roles", "price_per_million_tokens", "precision")
_SCALED: Final = (
    "min",
    "max",
    "target_ongoing_requests",
    "max_ongoing_requests",
    "max_queued_requests",
    "drain_timeout_s",
)
_LIVE: Final = (
    ("contracts",),
    ("routing",),
    ("admission",),
    ("precision",),
    ("experts",),
    ("ingress", "limits"),
    ("deployment",),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One changed field, and the way in which it comes into force."""

    change: Change
    way: Way
    model: str | None = None
    """The model that it belongs to; None: to none."""


@dataclass(frozen=True, slots=True)
class ChangePlan:
    """All that differs between two configs."""

    steps: tuple[Step, ...]

    @property
    def refused(self) -> tuple[Step, ...]:
        """What a running cluster cannot take on."""
        return tuple(step for step in self.steps if step.way is Way.RESTART)

    def models(self, way: Way) -> tuple[str, ...]:
        """Models with a change of this kind, in the order of the config. A model that is replaced needs no scaling beside it."""
        replaced = {step.model for step in self.steps if step.way is Way.REPLACE}
        found = [step.model for step in self.steps if step.way is way and step.model is not None]
        return tuple(name for name in dict.fromkeys(found) if way is not Way.SCALE or name not in replaced)


def plan_changes(old: ClusterConfig, new: ClusterConfig) -> ChangePlan:
    """Every field that differs, each with the one way in which it comes into force."""
    return ChangePlan(tuple(_step(change, old, new) for change in config_diff(old, new)))


def _step(change: Change, old: ClusterConfig, new: ClusterConfig) -> Step:
    section, *below = change.keys
    if section != "models" or not below:
        live = any(change.keys[: len(one)] == one for one in _LIVE)
        return Step(change, Way.LIVE if live else Way.RESTART)
    model, *field = below
    if model not in old.models:
        return Step(change, Way.ADD, model)
    if model not in new.models:
        return Step(change, Way.REMOVE, model)
    way = way_of_model_field(".".join(field))
    if field == ["replicas", "drain_timeout_s"] and new.models[model].pools is not None:
        # Pools outlast the engines that use them, and are not handed to Serve anew.
        way = Way.REPLACE
    return Step(change, way, model)


def way_of_model_field(field: str) -> Way:
    """How a field of a model, by its path below the model, comes into force."""
    if field.split(".", maxsplit=1)[0] in _LIVE_OF_MODELS:
        return Way.LIVE
    scaled = field in {f"replicas.{name}" for name in _SCALED} or field.startswith("replicas.scaling.")
    return Way.SCALE if scaled else Way.REPLACE
