"""What is done about an answer that its model was not sure of, and who checks answers."""

from __future__ import annotations

from pydantic import Field

from cluster.config.base import ModelName, Role, Section


class FeedbackConfig(Section):
    """Judging answers, further attempts, and verification."""

    enabled: bool = False
    """True judges every answer to `auto` or a role; callers who name a model ask for it themselves (yes or no, no unit)."""
    confidence_threshold: float = Field(0.5, ge=0, le=1)
    """Confidence, 0 to 1, below which an answer is not accepted."""
    thresholds: dict[ModelName, float] = Field({}, max_length=256)
    """The same for single models or roles, by name; a model's own comes before its role's."""
    max_attempts: int = Field(3, ge=1, le=8)
    """Attempts at one request, the first included (a count)."""
    max_tokens: int = Field(8192, ge=1, le=16_777_216)
    """Prompt and completion tokens that all attempts at one request may take together."""
    requery_temperature: float = Field(0.2, gt=0, le=2)
    """Temperature of further attempts, a number; an answer that was drawn with this or less is not asked for again."""
    gate_tokens: int = Field(16, ge=1, le=1024)
    """Tokens of a stream that are held back until its beginning is judged."""
    escalate_to: tuple[ModelName, ...] = Field((), max_length=16)
    """Roles or models, in order, that are asked next; empty: the fallbacks of the request's role."""
    template: bool = True
    """True answers with the passages of the request, or that there are none, when no attempt is good enough; false sends
    the best attempt (yes or no, no unit). A request's `grounding` comes before it."""
    verifier_role: Role = "verifier"
    """Role that is asked whether an answer is right, a name."""
    verifier_threshold: float = Field(0.5, ge=0, le=1)
    """Probability of a yes, 0 to 1, from which the verifier counts as convinced."""
    verifier_timeout_s: float = Field(10.0, gt=0, le=600)
    """Seconds that the verifier may take; later, the answer counts as not verified."""
    hook: str | None = Field(None, max_length=256, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """Import path (`package.module:function`) of a check of your own on every answer that is judged; null: none."""
    hook_timeout_s: float = Field(1.0, gt=0, le=60)
    """Seconds that the hook may take; later, the answer counts as not verified."""
    facts_role: Role = "facts"
    """Role that finds the facts of a two-stage answer, a name."""
    fluency_role: Role = "fluency"
    """Role that words them, a name."""
