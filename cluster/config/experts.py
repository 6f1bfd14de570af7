"""When an expert of a sparse model counts as hot, and what of experts is told. See docs/experts.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from cluster.config.base import Section
from cluster.config.mistakes import Mistake

if TYPE_CHECKING:
    from cluster.config.cluster import ClusterConfig


class ExpertsConfig(Section):
    """How the heat of experts is measured, and how much is told of it."""

    half_life_s: float = Field(30.0, gt=0, le=86_400)
    """Seconds after which a token counts half."""
    hot: float = Field(1.5, gt=1, le=10_000)
    """Times the even share of its layer's tokens above which an expert is hot, a number."""
    cool: float = Field(1.2, gt=0, le=10_000)
    """Times the even share below which it cools down again, a number; less than `hot`."""
    dwell_s: float = Field(5.0, gt=0, le=86_400)
    """Seconds for which it must stay above before it counts as hot, and below before it counts as cool."""
    min_tokens: int = Field(200, ge=1, le=1_000_000_000)
    """Tokens that a layer must have had lately, older ones counted less, before any of its experts is called hot."""
    log_tokens: int = Field(512, ge=0, le=65_536)
    """Tokens of each sequence whose experts a request may ask for; 0: none may."""
    metric_series: int = Field(512, ge=0, le=100_000)
    """Series by layer and expert (a count) that the metrics of a model may have; a model with more is told by layer alone."""


def check_experts(config: ClusterConfig) -> Iterator[Mistake]:
    """Mistakes of the section."""
    if config.experts.cool >= config.experts.hot:
        yield Mistake("experts.cool", "this is not below experts.hot, so experts would flap", "lower it or raise hot")
