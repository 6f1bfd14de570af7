"""The request field `pointsman`: what a caller may say about routing, and nothing about the answer's text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cluster.api.answer_knobs import Passage, Verify, read_passages, read_verify
from cluster.api.errors import bad_request
from cluster.api.fields import Fields
from cluster.routing.latency_class import LatencyClass

FIELD: Final = "pointsman"
MAX_ALLOWED_MODELS: Final = 64
MAX_MODEL_BYTES: Final = 256
MAX_RETRIES: Final = 16
"""Of any cluster; the operator's own bound is in the config."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """What a caller decides, within the operator's bounds. None: left to the operator."""

    allowed_models: frozenset[str] | None = None
    latency_class: LatencyClass = LatencyClass.STANDARD
    business_critical: bool = False
    retrieval_confidence: float | None = None
    """0 to 1."""
    min_confidence: float | None = None
    """Confidence, 0 to 1, below which an answer is not taken."""
    retries: int | None = None
    """Attempts after the first."""
    verify: Verify | None = None
    """What the answer is checked against before it leaves."""
    grounding: bool | None = None
    """Whether the passages take the place of an answer that is not good enough."""
    passages: tuple[Passage, ...] = ()
    """What was retrieved for the request."""
    two_stage: bool = False
    """Whether one model finds the facts and another one words them."""
    experts: bool = False
    """Whether the answer tells which experts of a sparse model each token went to."""
    given: frozenset[str] = frozenset()
    """Names of the knobs that the caller turned."""


NO_KNOBS: Final = Knobs()

_KNOWN: Final = (
    "allowed_models",
    "latency_class",
    "business_critical",
    "retrieval_confidence",
    "min_confidence",
    "retries",
    "verify",
    "grounding",
    "passages",
    "two_stage",
    "experts",
)


def read_knobs(fields: Fields) -> Knobs:
    """The knobs in a body's fields. Raises `ApiError` 400 naming field and limit."""
    knobs = fields.object(FIELD)
    if knobs is None:
        return NO_KNOBS
    knobs.allow(_KNOWN)
    urgency = knobs.choice("latency_class", tuple(LatencyClass))
    return Knobs(
        allowed_models=_models(knobs),
        latency_class=LatencyClass.STANDARD if urgency is None else LatencyClass(urgency),
        business_critical=knobs.boolean("business_critical") or False,
        retrieval_confidence=knobs.number("retrieval_confidence", 0, 1),
        min_confidence=knobs.number("min_confidence", 0, 1),
        retries=knobs.integer("retries", 0, MAX_RETRIES),
        verify=read_verify(knobs),
        grounding=knobs.boolean("grounding"),
        passages=read_passages(knobs),
        two_stage=knobs.boolean("two_stage") or False,
        experts=knobs.boolean("experts") or False,
        given=frozenset(name for name in _KNOWN if knobs.get(name) is not None),
    )


def _models(knobs: Fields) -> frozenset[str] | None:
    listed = knobs.array("allowed_models", MAX_ALLOWED_MODELS, min_items=1)
    if listed is None:
        return None
    names = set()
    for item in listed:
        if not isinstance(item, str) or len(item) > MAX_MODEL_BYTES:
            path = knobs.at("allowed_models")
            raise bad_request(path, f"`{path}` must hold names of models.", "invalid_type")
        names.add(item)
    return frozenset(names)
