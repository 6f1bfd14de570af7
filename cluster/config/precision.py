"""How far precision is lowered while a KV cache is under pressure, and when it returns."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from cluster.config.base import ModelName, Section
from cluster.precision.measures import Measure
from cluster.routing.latency_class import LatencyClass

MAX_LEVELS: Final = len(Measure)

KvPrecision = Literal["fp8"]
"""Number formats of the KV cache that a replica can be switched to, besides that of its model."""


class LeaveConfig(Section):
    """Pressure up to which a replica counts as calm."""

    kv_usage: float = Field(0.5, ge=0, le=1)
    """Share of the KV cache that is in use, 0 to 1."""
    preemptions_per_s: float = Field(0.05, ge=0, le=1_000_000)
    """Requests a second that lose their KV memory and start over."""


class EnterConfig(Section):
    """Pressure from which a replica goes down a level; any one of the three is enough."""

    kv_usage: float = Field(0.9, gt=0, le=1)
    """Share of the KV cache that is in use, 0 to 1."""
    preemptions_per_s: float = Field(0.5, gt=0, le=1_000_000)
    """Requests a second that lose their KV memory and start over."""
    queue_growth_per_s: float = Field(1.0, gt=0, le=1_000_000)
    """Requests a second by which the queue in front grows; it counts only while more KV is in use than `leave.kv_usage`."""


class PrecisionConfig(Section):
    """The precision ladder: each level adds a measure. A replica goes down under pressure, and up when it is calm."""

    enabled: bool = True
    """False keeps every replica at level 0 (yes or no, no unit)."""
    levels: tuple[Measure, ...] = Field(tuple(Measure), max_length=MAX_LEVELS)
    """Measures, names, in the order in which they are taken: level n has the first n in force, level 0 has none."""
    enter: EnterConfig = EnterConfig()
    """Pressure from which a replica goes down a level."""
    leave: LeaveConfig = LeaveConfig()
    """Pressure up to which it counts as calm, and goes up a level; both must be met."""
    dwell_s: float = Field(30.0, gt=0, le=86_400)
    """Seconds between two changes of a replica at least; a switch of its KV precision must cost less than that."""
    window_s: float = Field(5.0, ge=1, le=3600)
    """Seconds over which rates are taken."""
    stagger_s: float = Field(5.0, ge=0, le=3600)
    """Seconds between the KV precision switches of two replicas of a model at least."""
    max_temperature: float = Field(0.3, gt=0, le=2)
    """Temperature that `conservative_sampling` leaves at most, a number."""
    max_top_p: float = Field(0.9, gt=0, le=1)
    """Top-p that `conservative_sampling` leaves at most, 0 to 1."""
    max_completion_tokens: int = Field(256, ge=1, le=16_777_216)
    """Completion tokens that `conservative_sampling` leaves a best-effort request at most."""
    best_effort: tuple[LatencyClass, ...] = Field((LatencyClass.BATCH,), max_length=len(LatencyClass))
    """Latency classes whose completions are kept short, and which `shed` refuses."""
    min_agreement: float = Field(0.9, ge=0, le=1)
    """Share of tokens, 0 to 1, that a lower KV precision must choose as the model's own does; see `kv_quality`."""
    max_kl: float = Field(0.1, ge=0, le=1000)
    """Mean divergence of next-token distributions that a lower KV precision may have, a number (nats); see `kv_quality`."""


class KvQuality(Section):
    """What a lower KV precision does to the answers of a model; measured by `pointsman precision measure`."""

    agreement: float = Field(ge=0, le=1)
    """Share of tokens, 0 to 1, for which the most probable choice is the same."""
    kl: float = Field(ge=0, le=1_000_000)
    """Mean KL divergence of the next-token distributions, a number (nats)."""
    consistency: float = Field(ge=0, le=1)
    """Share of greedy answers, 0 to 1, that come out the same."""


class ModelPrecisionConfig(Section):
    """What the precision ladder needs to know of one model."""

    twin: ModelName | None = None
    """Name of a model of lower precision that takes this one's new requests at the level `twin`; null: there is none."""
    kv_quality: dict[KvPrecision, KvQuality] = Field({}, max_length=8)
    """Measured quality by KV precision; one that stands not here is not switched to."""
    pinned: int | None = Field(None, ge=0, le=MAX_LEVELS)
    """Level that replicas are held at, a number; null: pressure decides."""
