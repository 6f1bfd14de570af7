"""What the child process that measures a model is told and tells, one JSON object a line."""

from __future__ import annotations

import msgspec


class Task(msgspec.Struct, frozen=True):
    """What is to be measured."""

    model: str
    path: str
    """Folder of the checkpoint."""
    config: str
    """The model's section of the config, as JSON."""
    prompts: int
    tokens: int
    """Tokens of an answer at most."""


class Step(msgspec.Struct, frozen=True, tag="step"):
    """Work goes on."""

    text: str
    fraction: float | None = None
    """Done, 0 to 1; None: not known."""


class Figure(msgspec.Struct, frozen=True):
    """A figure with the bounds of its 95% interval."""

    value: float
    low: float
    high: float


class Quality(msgspec.Struct, frozen=True):
    """As `deployments.models.kv_quality.Quality`."""

    agreement: Figure
    kl: Figure
    consistency: Figure
    covered: float
    prompts: int
    positions: int


class Done(msgspec.Struct, frozen=True, tag="done"):
    """As `deployments.models.kv_measurement.Measured`."""

    own: str
    quality: dict[str, Quality]
    itself: Quality
    longest_prompt: int
    block_tokens: int


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """It was not measured."""

    problem: str
    remedy: str


MeasureMessage = Step | Done | Failed
