"""What is measured: one record per request, and the figures of a run made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from loadtests.stats import quantile

SIMULATED: Final = "(simulated)"
"""How the name of a model with a simulated engine ends in its answers."""

FEW_TOKENS: Final = 2
"""Arrivals with up to this many tokens count as sent when they were made."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One network read that carried generated text."""

    gap_s: float
    """Seconds since the previous such read; for the first one since the request was sent."""
    tokens: int


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One finished request, good or bad. Times are seconds."""

    started_s: float
    ended_s: float
    status: int
    error: str | None
    """None, or what went wrong: `http_429`, `timeout`, `closed`, `stream_error`, `no_done` and so on."""
    ttft_s: float | None
    prompt_tokens: int
    completion_tokens: int
    arrivals: tuple[Arrival, ...]
    tokens_exact: bool
    """Whether tokens per arrival were counted: as many events with text as tokens. Otherwise apportioned by length."""
    finish_reason: str | None
    answered_by: str | None = None
    """The model, as the answer names it: a simulated one says so there."""

    @property
    def e2e_s(self) -> float:
        """Seconds from the request to the last byte."""
        return self.ended_s - self.started_s


@dataclass(frozen=True, slots=True)
class Spread:
    """Quantiles of one measure, seconds; None where nothing was measured."""

    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class RunSummary:
    """The figures of one run. Rates are per second of the measured window, times are seconds."""

    streams: int
    requests: int
    succeeded: int
    errors: dict[str, int]
    statuses: dict[str, int]
    finish_reasons: dict[str, int]
    window_s: float
    prompt_tokens: int
    completion_tokens: int
    tokens_per_s: float
    requests_per_s: float
    ttft: Spread
    itl: Spread
    """Inter-token latency: a read with k tokens counts as its gap once and k - 1 zeros."""
    gap: Spread
    """Time between reads that carry text, however many tokens each carries."""
    e2e: Spread
    few_token_share: float | None
    """Share of arrivals that carry at most 2 tokens."""
    exact_share: float | None
    """Share of requests whose tokens per arrival were counted rather than apportioned."""
    client_cpu_s: float
    """CPU seconds that the load client itself took."""
    answered_by: tuple[str, ...] = ()
    """Models, as the answers name them."""

    @property
    def simulated(self) -> bool:
        """Whether any answer came from a simulated engine: its figures are no measurement of a model."""
        return any(name.endswith(SIMULATED) for name in self.answered_by)

    def as_json(self) -> dict[str, object]:
        """Plain data for `json.dumps`."""
        return asdict(self)


def spread(values: Sequence[float]) -> Spread:
    """Quantiles of `values`."""
    if not values:
        return Spread(None, None, None)
    ordered = sorted(values)
    return Spread(quantile(ordered, 0.5), quantile(ordered, 0.95), quantile(ordered, 0.99))


def summarise(records: Sequence[RequestRecord], streams: int, client_cpu_s: float) -> RunSummary:
    """The figures of a run. The window reaches from the first request's start to the last one's end."""
    good = [record for record in records if record.error is None]
    window = max((r.ended_s for r in records), default=0.0) - min((r.started_s for r in records), default=0.0)
    # The first arrival of a request is its TTFT; gaps are between arrivals.
    later = [arrival for record in good for arrival in record.arrivals[1:]]
    arrivals = [arrival for record in good for arrival in record.arrivals]
    per_token: list[float] = []
    for record in good:
        for position, arrival in enumerate(record.arrivals):
            if position:
                per_token.append(arrival.gap_s)
            per_token.extend([0.0] * (arrival.tokens - 1))
    completion = sum(record.completion_tokens for record in good)
    return RunSummary(
        streams=streams,
        requests=len(records),
        succeeded=len(good),
        errors=dict(Counter(record.error for record in records if record.error is not None)),
        statuses=dict(Counter(str(record.status) for record in records)),
        finish_reasons=dict(Counter(record.finish_reason or "none" for record in good)),
        window_s=window,
        prompt_tokens=sum(record.prompt_tokens for record in good),
        completion_tokens=completion,
        tokens_per_s=completion / window if window > 0 else 0.0,
        requests_per_s=len(good) / window if window > 0 else 0.0,
        ttft=spread([record.ttft_s for record in good if record.ttft_s is not None]),
        itl=spread(per_token),
        gap=spread([arrival.gap_s for arrival in later]),
        e2e=spread([record.e2e_s for record in good]),
        few_token_share=sum(a.tokens <= FEW_TOKENS for a in arrivals) / len(arrivals) if arrivals else None,
        exact_share=sum(record.tokens_exact for record in good) / len(good) if good else None,
        client_cpu_s=client_cpu_s,
        answered_by=tuple(sorted({record.answered_by for record in good if record.answered_by is not None})),
    )
