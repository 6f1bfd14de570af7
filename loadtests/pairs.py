"""Paired runs of two arms in alternating order, and what their ratios say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from loadtests.records import RunSummary
from loadtests.stats import Interval, median, median_interval, ratios


@dataclass(frozen=True, slots=True)
class Pair:
    """The two runs of one pair: same prompts, same lengths, one after the other."""

    streams: int
    number: int
    measured_first: bool
    baseline: RunSummary
    measured: RunSummary


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the pairs at one number of streams say. Ratios are measured over baseline, medians of the pairs."""

    streams: int
    pairs: int
    tokens_per_s: Interval
    ttft_p50: Interval
    ttft_p50_difference_s: Interval
    """Seconds that the measured arm takes longer to its first token."""
    gap_p50: Interval
    """Of the time between arrivals of text."""
    baseline_tokens_per_s: float
    measured_tokens_per_s: float
    baseline_ttft_p50_s: float
    measured_ttft_p50_s: float
    baseline_few_token_share: float
    measured_few_token_share: float


def orders(pairs: int) -> Iterator[bool]:
    """For each pair whether the measured arm goes first: A B, B A, A B and so on, so that drift cancels out."""
    return (number % 2 == 1 for number in range(pairs))


def run_pair(streams: int, number: int, measured_first: bool, run: Callable[[bool], RunSummary]) -> Pair:
    """Run one pair. `run(True)` runs the measured arm, `run(False)` the baseline."""
    if measured_first:
        measured = run(True)
        return Pair(streams, number, measured_first, baseline=run(False), measured=measured)
    baseline = run(False)
    return Pair(streams, number, measured_first, baseline=baseline, measured=run(True))


def unfair(pair: Pair) -> list[str]:
    """Why the two runs of a pair cannot be compared; empty when they can."""
    found = []
    for name, arm in (("baseline", pair.baseline), ("measured arm", pair.measured)):
        if arm.errors:
            found.append(f"{name}: {sum(arm.errors.values())} of {arm.requests} requests failed ({arm.errors})")
        if not arm.succeeded:
            found.append(f"{name}: nothing succeeded")
    if not found and pair.baseline.prompt_tokens != pair.measured.prompt_tokens:
        found.append(f"prompt tokens differ: {pair.baseline.prompt_tokens} and {pair.measured.prompt_tokens}")
    if not found and pair.baseline.completion_tokens != pair.measured.completion_tokens:
        found.append(
            f"completion tokens differ: {pair.baseline.completion_tokens} and {pair.measured.completion_tokens}"
        )
    return found


def compare(pairs: Sequence[Pair]) -> Comparison:
    """What pairs of the same number of streams say. Raises `ValueError` for none, or for runs without any tokens."""
    if len({pair.streams for pair in pairs}) != 1:
        raise ValueError("pairs of one number of streams are compared at a time")
    baseline = [pair.baseline for pair in pairs]
    measured = [pair.measured for pair in pairs]
    ttft = [_known(run.ttft.p50) for run in baseline], [_known(run.ttft.p50) for run in measured]
    return Comparison(
        streams=pairs[0].streams,
        pairs=len(pairs),
        tokens_per_s=_ratio([run.tokens_per_s for run in measured], [run.tokens_per_s for run in baseline]),
        ttft_p50=_ratio(ttft[1], ttft[0]),
        ttft_p50_difference_s=median_interval([above - below for below, above in zip(*ttft, strict=True)]),
        gap_p50=_ratio([_known(run.gap.p50) for run in measured], [_known(run.gap.p50) for run in baseline]),
        baseline_tokens_per_s=median([run.tokens_per_s for run in baseline]),
        measured_tokens_per_s=median([run.tokens_per_s for run in measured]),
        baseline_ttft_p50_s=median(ttft[0]),
        measured_ttft_p50_s=median(ttft[1]),
        baseline_few_token_share=median([_known(run.few_token_share) for run in baseline]),
        measured_few_token_share=median([_known(run.few_token_share) for run in measured]),
    )


def _ratio(measured: Sequence[float], baseline: Sequence[float]) -> Interval:
    return median_interval(ratios(measured, baseline))


def _known(value: float | None) -> float:
    if value is None:
        raise ValueError("a run without any text cannot be compared")
    return value
