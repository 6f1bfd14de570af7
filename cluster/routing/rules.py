"""The rules of `model: auto`: from the signals of a request to a role, and to a sampling mode."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cluster.config.base import AUTO
from cluster.config.routing import RoutingConfig, RuleConfig
from cluster.routing.conditions import Condition, conditions_of, holds
from cluster.routing.decision import SamplingRuling
from cluster.routing.signals import RequestSignals, is_code


@dataclass(frozen=True, slots=True)
class Ruling:
    """What the rules say."""

    role: str
    code: str
    """The rule that decided, a label."""
    reason: str


class Rules:
    """The rules in force, prepared: each decision looks only at the conditions that are given."""

    def __init__(self, rules: tuple[RuleConfig, ...], routing: RoutingConfig) -> None:
        self._routing = routing
        self._roles: list[tuple[tuple[Condition, ...], str, str]] = []
        self._sampling: list[tuple[tuple[Condition, ...], SamplingRuling]] = []
        for rule in rules:
            conditions = conditions_of(rule.when)
            if rule.role is not None:
                self._roles.append((conditions, rule.role, f"{AUTO}_{rule.name}"))
            if rule.sampling is not None:
                strict = rule.when.business_critical is True
                self._sampling.append((conditions, SamplingRuling(rule.sampling, rule.name, strict)))

    def role(self, signals: RequestSignals) -> Ruling:
        """The role that a request to `auto` goes to."""
        ruling = self._ruling(signals)
        note = signals.intent.note
        return ruling if not note else replace(ruling, reason=f"{ruling.reason}; intent by its words, {note}")

    def _ruling(self, signals: RequestSignals) -> Ruling:
        for conditions, role, code in self._roles:
            if (why := holds(conditions, signals)) is not None:
                return Ruling(role, code, f"auto: {why}, goes to role {role}")
        routing = self._routing
        if is_code(signals):
            return Ruling(routing.code_role, "auto_code", f"auto: looks like code, goes to role {routing.code_role}")
        short = signals.prompt_tokens <= routing.fast_max_prompt_tokens
        if short and signals.max_tokens is not None and signals.max_tokens <= routing.fast_max_completion_tokens:
            why = f"about {signals.prompt_tokens} prompt tokens and at most {signals.max_tokens} to answer with"
            return Ruling(routing.fast_role, "auto_fast", f"auto: short ({why}), goes to role {routing.fast_role}")
        reason = f"auto: neither short nor code, goes to role {routing.default_role}"
        return Ruling(routing.default_role, "auto_default", reason)

    def sampling(self, signals: RequestSignals) -> SamplingRuling | None:
        """The sampling mode, whatever model was named; None: no rule says."""
        for conditions, ruling in self._sampling:
            if holds(conditions, signals) is not None:
                return ruling
        return None
