"""What makes a model get more replicas, beside the number of its requests."""

from __future__ import annotations

from pydantic import Field

from cluster.config.base import Section


class ScalingConfig(Section):
    """What each replica is to hold of everything that loads it; the largest need decides. It takes effect where `max` is above `min`."""

    target_waiting: float | None = Field(4.0, gt=0, le=1_000_000)
    """Requests that wait inside an engine which autoscaling aims at; null: they do not count."""
    target_tokens_in_flight: int | None = Field(None, ge=1, le=2**40)
    """Tokens in the KV cache of a replica which autoscaling aims at; null: they do not count."""
    target_kv_usage: float | None = Field(0.8, gt=0, le=1)
    """Share of its KV cache, 0 to 1, which autoscaling aims at; null: it does not count."""
    target_expert_tokens_per_s: float | None = Field(None, gt=0, le=1e9)
    """Tokens a second of the busiest expert of a sparse model which autoscaling aims at; null: they do not count."""
    tolerance: float = Field(0.1, ge=0, le=1)
    """Share, 0 to 1, by which a figure may miss its target before it asks for another number of replicas."""
    upscale_delay_s: float = Field(30.0, ge=0, le=86_400)
    """Seconds for which more replicas must be wanted before there are more."""
    downscale_delay_s: float = Field(600.0, ge=0, le=86_400)
    """Seconds for which fewer must be wanted before there are fewer."""
    downscale_to_zero_delay_s: float = Field(600.0, ge=0, le=86_400)
    """Seconds without a request after which the last replica goes, where `min` is 0."""
