"""What a collector's tail sampling does with a trace, as far as `infra/otel/collector.yaml` uses it. Anything else is an error.

After the processor's own code (opentelemetry-collector-contrib, processor/tailsamplingprocessor/internal/sampling): attributes
are looked for on spans and on resources, numbers are integers alone, a pattern may match anywhere, and the probability hangs on
the trace's id.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

EVENT_NAME = re.compile(r'name == "([a-z0-9_.]+)"')
"""The one form of an OTTL condition that is understood."""

_FNV_OFFSET, _FNV_PRIME, _ALL = 0xCBF29CE484222325, 0x100000001B3, 2**64 - 1
_SALT = b"default-hash-seed"

Trace = Sequence[ReadableSpan]
Settings = Mapping[str, Any]


def kept_by(policies: Sequence[Settings], trace: Trace) -> list[str]:
    """Names of the policies that keep a trace; it is kept if there is one. Raises `ValueError` for what is not understood."""
    return [policy["name"] for policy in policies if _evaluator(policy)(trace)]


def keys_of(policies: Sequence[Settings]) -> Iterator[str]:
    """Attributes that policies look at."""
    for policy in policies:
        settings = policy.get(policy["type"], {})
        if "key" in settings:
            yield settings["key"]


def events_of(policies: Sequence[Settings]) -> Iterator[str]:
    """Names of span events that policies look at."""
    for policy in policies:
        for condition in policy.get("ottl_condition", {}).get("spanevent", ()):
            yield _event_of(condition)


def _evaluator(policy: Settings) -> Callable[[Trace], bool]:
    kind = policy["type"]
    if set(policy) != {"name", "type", kind} or kind not in _EVALUATORS:
        raise ValueError(f"policy {policy['name']}: {sorted(policy)} is not understood")
    make, known = _EVALUATORS[kind]
    settings = policy[kind]
    if not set(settings) <= known:
        raise ValueError(f"policy {policy['name']}: {sorted(set(settings) - known)} is not understood")
    return make(settings)


def _status_code(settings: Settings) -> Callable[[Trace], bool]:
    codes = {StatusCode[name] for name in settings["status_codes"]}
    return lambda trace: any(span.status.status_code in codes for span in trace)


def _latency(settings: Settings) -> Callable[[Trace], bool]:
    def slow(trace: Trace) -> bool:
        began, ended = min(span.start_time or 0 for span in trace), max(span.end_time or 0 for span in trace)
        return (ended - began) // 1_000_000 >= settings["threshold_ms"]

    return slow


def _numeric(settings: Settings) -> Callable[[Trace], bool]:
    def within(value: object) -> bool:
        return type(value) is int and settings["min_value"] <= value <= settings["max_value"]

    return lambda trace: any(within(value) for value in _values(trace, settings["key"]))


def _string(settings: Settings) -> Callable[[Trace], bool]:
    values = settings["values"]
    if settings.get("enabled_regex_matching", False):
        patterns = [re.compile(value) for value in values]
        return lambda trace: any(
            isinstance(value, str) and any(pattern.search(value) for pattern in patterns)
            for value in _values(trace, settings["key"])
        )
    return lambda trace: any(value in values for value in _values(trace, settings["key"]))


def _ottl(settings: Settings) -> Callable[[Trace], bool]:
    wanted = {_event_of(condition) for condition in settings["spanevent"]}
    return lambda trace: any(event.name in wanted for span in trace for event in span.events)


def _probabilistic(settings: Settings) -> Callable[[Trace], bool]:
    threshold = int(_ALL * settings["sampling_percentage"] / 100)

    def drawn(trace: Trace) -> bool:
        context = trace[0].get_span_context()
        return context is not None and _fnv1a(_SALT + context.trace_id.to_bytes(16)) <= threshold

    return drawn


def _event_of(condition: str) -> str:
    match = EVENT_NAME.fullmatch(condition)
    if match is None:
        raise ValueError(f"the condition {condition!r} is not understood")
    return match[1]


def _values(trace: Trace, key: str) -> Iterator[object]:
    for span in trace:
        for attributes in (span.attributes, span.resource.attributes):
            if attributes is not None and key in attributes:
                yield attributes[key]


def _fnv1a(data: bytes) -> int:
    digest = _FNV_OFFSET
    for byte in data:
        digest = ((digest ^ byte) * _FNV_PRIME) & _ALL
    return digest


_EVALUATORS: dict[str, tuple[Callable[[Settings], Callable[[Trace], bool]], set[str]]] = {
    "status_code": (_status_code, {"status_codes"}),
    "latency": (_latency, {"threshold_ms"}),
    "numeric_attribute": (_numeric, {"key", "min_value", "max_value"}),
    "string_attribute": (_string, {"key", "values", "enabled_regex_matching", "cache_max_size"}),
    "ottl_condition": (_ottl, {"error_mode", "spanevent"}),
    "probabilistic": (_probabilistic, {"sampling_percentage"}),
}
