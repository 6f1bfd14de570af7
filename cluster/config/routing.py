"""How the ingress chooses a model: rules, scorers, and what callers may decide themselves."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, StringConstraints

from cluster.config.base import Role, Section
from cluster.config.contract import Sampling
from cluster.config.feedback import FeedbackConfig
from cluster.config.intent import IntentConfig
from cluster.routing.intent import Intent
from cluster.routing.latency_class import LatencyClass

RuleName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
ScorerName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]

RETRIEVAL_THRESHOLD: Final = 0.6


class ConditionsConfig(Section):
    """When a rule holds: all conditions that are given must be met. A signal that is missing meets none."""

    retrieval_confidence_below: float | None = Field(None, ge=0, le=1)
    """Retrieval confidence, 0 to 1, below which it holds; null: not looked at."""
    latency_class: LatencyClass | None = None
    """Latency class of the request: `interactive`, `standard` or `batch`; null: any."""
    business_critical: bool | None = None
    """Whether the caller calls the request business-critical (yes or no, no unit); null: either."""
    intents: tuple[Intent, ...] = Field((), max_length=16)
    """Intents, names; empty: any."""
    max_prompt_tokens: int | None = Field(None, ge=0, le=16_777_216)
    """Prompt tokens (estimated) at most; null: any number."""
    max_completion_tokens: int | None = Field(None, ge=1, le=16_777_216)
    """Completion tokens asked for at most, so that open-ended requests are out; null: any number."""
    min_messages: int | None = Field(None, ge=1, le=100_000)
    """Messages of the conversation at least (a count); null: any number."""


class RuleConfig(Section):
    """One rule of `model: auto`. The first that holds and names a role decides the role, likewise for the sampling mode."""

    name: RuleName
    """Name of the rule, shown in traces and metrics."""
    when: ConditionsConfig = ConditionsConfig()
    """When it holds."""
    role: Role | None = None
    """Role that takes the request, a name; null: the rule is about sampling alone."""
    sampling: Sampling | None = None
    """Sampling mode for what the caller leaves open, whatever model it names; null: the rule is about the role alone."""


def _rule(name: str, role: str | None, sampling: Sampling | None = None, **when: object) -> RuleConfig:
    return RuleConfig(name=name, when=ConditionsConfig.model_validate(when), role=role, sampling=sampling)


DEFAULT_RULES: Final = (
    _rule("low_retrieval", "strong", retrieval_confidence_below=RETRIEVAL_THRESHOLD),
    _rule("batch", "large_context", latency_class=LatencyClass.BATCH),
    _rule("interactive", "fast", Sampling.DETERMINISTIC, latency_class=LatencyClass.INTERACTIVE),
    _rule("critical", None, Sampling.DETERMINISTIC, business_critical=True),
    _rule("ideation", None, Sampling.STOCHASTIC, intents=(Intent.IDEATION,)),
)
"""Those whose role no model of the portfolio plays are left out."""

DEFAULT_SCORERS: Final = {"role_fit": 4.0, "queue": 2.0, "kv": 2.0, "confidence": 1.0, "latency": 1.0, "cost": 0.5}


class KnobsConfig(Section):
    """What callers may decide in the request field `pointsman`."""

    allowed_models: bool = True
    """True lets a request restrict the models that may answer it (yes or no, no unit)."""
    latency_class: bool = True
    """True lets a request say how urgent it is (yes or no, no unit)."""
    business_critical: bool = True
    """True lets a request call itself business-critical (yes or no, no unit)."""
    retrieval_confidence: bool = True
    """True lets a request say how well what was retrieved fits (yes or no, no unit)."""
    min_confidence: bool = True
    """True lets a request set the confidence below which an answer is not taken (yes or no, no unit)."""
    verify: bool = True
    """True lets a request say what its answer is checked against (yes or no, no unit)."""
    grounding: bool = True
    """True lets a request say whether its passages take the place of a doubtful answer (yes or no, no unit)."""
    passages: bool = True
    """True lets a request bring passages that an answer can rest on (yes or no, no unit)."""
    two_stage: bool = True
    """True lets a request have its answer made in two stages, by two models (yes or no, no unit)."""
    max_retries: int = Field(3, ge=0, le=16)
    """Attempts after the first that a request may ask for (a count)."""


class RoutingConfig(Section):
    """How a model is chosen: rules give `model: auto` a role, filters and scorers choose among the models that may take it.

    Where no rule names a role, code goes to `code_role`, short requests to `fast_role`, everything else to `default_role`.
    """

    rules: tuple[RuleConfig, ...] | None = Field(None, max_length=64)
    """Rules, in order; null: those of docs/routing.md, as far as their roles are played."""
    scorers: dict[ScorerName, Annotated[float, Field(ge=0, le=1000)]] = Field(DEFAULT_SCORERS, max_length=32)
    """Weight of each scorer (no unit); 0: it does not count."""
    switch_margin: float = Field(0.05, ge=0, le=1)
    """Score, 0 to 1, by which another model must beat the one that the role names first to take its place."""
    stale_after_s: float = Field(3.0, gt=0, le=3600)
    """Seconds after which what replicas told of their load counts as bad news."""
    knobs: KnobsConfig = KnobsConfig()
    """What callers may decide."""
    fast_max_prompt_tokens: int = Field(64, ge=0, le=16_777_216)
    """Prompt tokens (estimated) up to which a request counts as short."""
    fast_max_completion_tokens: int = Field(256, ge=0, le=16_777_216)
    """Completion tokens asked for up to which a request counts as bound by latency."""
    fast_role: Role = "fast"
    """Role that takes short requests, a name."""
    code_role: Role = "fluency"
    """Role that takes requests which look like code, a name."""
    default_role: Role = "strong"
    """Role that takes everything else, a name."""
    intent: IntentConfig = IntentConfig()
    """How the ingress tells what a request is for."""
    feedback: FeedbackConfig = FeedbackConfig()
    """What is done about an answer that its model was not sure of."""

    def rules_for(self, roles: frozenset[str]) -> tuple[RuleConfig, ...]:
        """The rules in force in a portfolio that plays `roles`."""
        if self.rules is not None:
            return self.rules
        return tuple(rule for rule in DEFAULT_RULES if rule.role is None or rule.role in roles)
