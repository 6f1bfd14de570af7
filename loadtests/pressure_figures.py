"""The figures of one run of the pressure scenario: goodput, speed, preemptions, and where the ladder was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loadtests.pressure_outcomes import Outcome
from loadtests.pressure_samples import ModelSample, Sample
from loadtests.pressure_workload import CLASSES, Phases
from loadtests.records import Spread, spread


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """Requests of one latency class."""

    offered: int
    completed: int
    in_target: int


@dataclass(frozen=True, slots=True)
class Figures:
    """One run of one arm. Rates are per second, times seconds."""

    offered: int
    completed: int
    failed: dict[str, int]
    """Requests without a whole answer, by code: refused, cut off, or lost."""
    in_target: int
    classes: dict[str, ClassFigures]
    shortened: int
    """Whole answers with fewer tokens than were asked for, as the ladder cut them."""
    tokens_per_s: float
    """Completion tokens of whole answers that arrived during the surge."""
    sent_tokens_per_s: float
    """The same with those of answers that were cut off later."""
    completion_tokens: int
    """Of whole answers, in all."""
    window_s: float
    """From the run's beginning to the last byte."""
    ttft: Spread
    total: Spread
    """Of whole answers, from when they were due."""
    total_of_all_p95_s: float | None
    """The same with those that failed, which count as never answered; None: more than 5 % of all were not."""
    preemptions: int
    forced_preemptions: int
    """By changes of the KV precision; not in `preemptions`."""
    recomputed_tokens: int
    switches: int
    levels: dict[str, int]
    """Highest level that each model reached."""
    answered_by: dict[str, int]
    memory_errors: int
    """Failures that are neither a refusal for load nor the contract's time, and engines that died."""
    lived_through_a_switch: int
    """Whole answers during which the KV precision changed."""
    sampling_changed: int
    asked_over_pool: float
    """Tokens of all requests under way, over those of the pool at the model's own precision; the most at any time."""

    @property
    def goodput(self) -> float:
        """Requests within their target over all offered, 0 to 1."""
        return self.in_target / self.offered if self.offered else 0.0

    @property
    def preemptions_per_completed(self) -> float:
        """Without the forced ones."""
        return self.preemptions / self.completed if self.completed else 0.0

    @property
    def forced_per_completed(self) -> float:
        """Those that changes of the KV precision forced."""
        return self.forced_preemptions / self.completed if self.completed else 0.0


@dataclass(frozen=True, slots=True)
class ArmRun:
    """One run: what was seen and what it adds up to."""

    arm: str
    round: int
    began_at: float
    """Unix time."""
    ended_at: float
    outcomes: tuple[Outcome, ...]
    samples: tuple[Sample, ...]
    figures: Figures
    timeline: tuple[dict[str, Any], ...] = ()
    """Changes of precision in it, as `pointsman precision timeline --json` tells of them."""


def figures_of(outcomes: Sequence[Outcome], samples: Sequence[Sample], phases: Phases, pool_tokens: int) -> Figures:
    """The figures of a run. Raises `ValueError` for fewer than two samples."""
    if len(samples) < 2:
        raise ValueError("a run needs two samples of the cluster at least")
    whole = [one for one in outcomes if one.code is None]
    surge = (phases.warm_up_s, phases.warm_up_s + phases.surge_s)

    def in_surge(of: Sequence[Outcome]) -> float:
        return sum(n for one in of for at_s, n in one.arrivals if surge[0] <= at_s < surge[1]) / phases.surge_s

    deaths = samples[-1].engine_deaths - samples[0].engine_deaths
    return Figures(
        offered=len(outcomes),
        completed=len(whole),
        failed=dict(Counter(one.code for one in outcomes if one.code is not None)),
        in_target=sum(one.in_target for one in outcomes),
        classes={name.value: _of_class([one for one in outcomes if one.latency_class is name]) for name in CLASSES},
        shortened=sum(one.is_shortened for one in outcomes),
        tokens_per_s=in_surge(whole),
        sent_tokens_per_s=in_surge(outcomes),
        completion_tokens=sum(one.completion_tokens for one in whole),
        window_s=max((one.at_s + one.total_s for one in outcomes), default=0.0),
        ttft=spread([one.ttft_s for one in whole if one.ttft_s is not None]),
        total=spread([one.total_s for one in whole]),
        total_of_all_p95_s=_p95_of_all(outcomes),
        preemptions=_grown(samples, "preemptions"),
        forced_preemptions=_grown(samples, "forced_preemptions"),
        recomputed_tokens=_grown(samples, "recomputed_tokens"),
        switches=_grown(samples, "switches"),
        levels=_highest(samples),
        answered_by=dict(Counter(one.model or "unknown" for one in whole)),
        memory_errors=deaths + sum(one.is_memory_error for one in outcomes),
        lived_through_a_switch=sum(one.switches > 0 for one in whole),
        sampling_changed=sum(bool(one.changed) for one in whole),
        asked_over_pool=most_under_way(outcomes) / pool_tokens,
    )


def most_under_way(outcomes: Sequence[Outcome]) -> int:
    """Prompt and completion tokens of all requests between their arrival and their end, the most at any time."""
    steps = [(one.at_s, one.prompt_tokens + one.asked_tokens) for one in outcomes]
    steps += [(one.at_s + one.total_s, -one.prompt_tokens - one.asked_tokens) for one in outcomes]
    most = now = 0
    for _, tokens in sorted(steps):
        now += tokens
        most = max(most, now)
    return most


def _of_class(outcomes: Sequence[Outcome]) -> ClassFigures:
    completed = sum(one.code is None for one in outcomes)
    return ClassFigures(len(outcomes), completed, sum(one.in_target for one in outcomes))


def _p95_of_all(outcomes: Sequence[Outcome]) -> float | None:
    """The time within which 95 of 100 offered requests had their whole answer."""
    times = sorted(one.total_s if one.code is None else float("inf") for one in outcomes)
    found = times[min(len(times) - 1, int(0.95 * len(times)))] if times else float("inf")
    return None if found == float("inf") else found


def _grown(samples: Sequence[Sample], field: str) -> int:
    """How much a counter grew, all models together."""

    def total(sample: Sample) -> int:
        return sum(int(getattr(model, field)) for model in sample.models.values())

    return total(samples[-1]) - total(samples[0])


def _highest(samples: Sequence[Sample]) -> dict[str, int]:
    seen: dict[str, list[ModelSample]] = {}
    for sample in samples:
        for name, model in sample.models.items():
            seen.setdefault(name, []).append(model)
    return {name: max(one.level for one in models) for name, models in seen.items()}
