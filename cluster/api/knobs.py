"""What a caller may set beside the model: the `pointsman` object of a request, within the operator's bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cluster.api.json_body import JsonObject


@dataclass(frozen=True, slots=True)
class Passage:
    """A retrieved passage that an answer may rest on."""

    id: str
    text: str = field(repr=False)
    score: float | None = None
    """How well it fits, as the retriever says, 0 to 1; None: not said."""


@dataclass(frozen=True, slots=True)
class Verify:
    """What an answer is checked against before it leaves."""

    json_schema: JsonObject | None = field(default=None, repr=False)
    regex: str | None = field(default=None, repr=False)
    exact: str | None = field(default=None, repr=False)
    verifier: bool = False
    """Whether the verifier model is asked if the answer is right."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """A request's knobs; None: the operator's default."""

    retries: int | None = None
    """Further attempts allowed (a count)."""
    grounding: bool | None = None
    """Whether an answer that no model is sure of is replaced by the passages it could rest on."""
    passages: tuple[Passage, ...] = ()
    verify: Verify | None = None
    two_stage: bool = False
    """Whether one model finds the facts and another one words them."""


NO_KNOBS: Final = Knobs()
"""What holds for a caller who sets none."""
