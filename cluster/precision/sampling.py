"""Conservative sampling: a request's body with less room for chance, and less of it where nobody waits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cluster.api.json_body import JsonObject, JsonValue
from cluster.config.precision import PrecisionConfig
from cluster.routing.latency_class import LatencyClass

OPENAI_TEMPERATURE: Final = 1.0
OPENAI_TOP_P: Final = 1.0
_LENGTHS: Final = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True, slots=True)
class Change:
    """One field of a body that was changed."""

    field: str
    old: JsonValue
    """None: the caller left it open."""
    new: float | int


def conservative(
    config: PrecisionConfig,
    body: Mapping[str, JsonValue],
    *,
    latency_class: LatencyClass,
    critical: bool,
    default_temperature: float = OPENAI_TEMPERATURE,
    default_top_p: float = OPENAI_TOP_P,
) -> tuple[JsonObject, tuple[Change, ...]]:
    """A copy of a chat or completions `body` under `conservative_sampling`, and what changed; never raises.

    Business-critical requests stay as they are, and so do values that are no numbers. The defaults are what a field that was
    left open counts as.
    """
    changes: list[Change] = []
    if not critical:
        temperature = _number(body.get("temperature"), default_temperature)
        cap = config.max_temperature
        # An engine refuses several answers without chance between them.
        if temperature is not None and temperature > cap and not (cap == 0 and _several(body)):
            changes.append(Change("temperature", body.get("temperature"), cap))
            temperature = cap
        top_p = _number(body.get("top_p"), default_top_p)
        if temperature != 0 and top_p is not None and top_p > config.max_top_p:
            changes.append(Change("top_p", body.get("top_p"), config.max_top_p))
        if latency_class in config.best_effort:
            changes += _shortened(config.max_completion_tokens, body)
    return {**body, **{change.field: change.new for change in changes}}, tuple(changes)


def _shortened(limit: int, body: Mapping[str, JsonValue]) -> list[Change]:
    least = body.get("min_tokens")
    # A request whose least is more than its most is refused by the engine.
    limit = max(limit, least) if isinstance(least, int) and not isinstance(least, bool) else limit
    named = [field for field in _LENGTHS if body.get(field) is not None]
    if not named:
        return [Change("max_tokens", None, limit)]
    asked = {field: _number(body[field], None) for field in named}
    return [Change(field, body[field], limit) for field, size in asked.items() if size is not None and size > limit]


def _number(value: JsonValue, default: float | None) -> float | None:
    """`value` if it is a number, `default` if it was left open, else None."""
    if value is None:
        return default
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _several(body: Mapping[str, JsonValue]) -> bool:
    answers = _number(body.get("n"), 1)
    return answers is not None and answers > 1
