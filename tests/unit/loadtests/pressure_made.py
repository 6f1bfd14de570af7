"""Runs of the pressure scenario that are made up, for tests of what is made of them."""

from __future__ import annotations

from dataclasses import replace

from cluster.routing.latency_class import LatencyClass
from loadtests.pressure_figures import ArmRun, figures_of
from loadtests.pressure_outcomes import Outcome
from loadtests.pressure_samples import ModelSample, Sample
from loadtests.pressure_workload import Phases

PHASES = Phases(warm_up_s=2.0, surge_s=10.0, tail_s=8.0)
POOL = 1000


def outcome(number: int, **fields: object) -> Outcome:
    """A whole answer of 10 tokens to a standard request; it came at `number` seconds and took two."""
    made = Outcome(
        number=number,
        at_s=float(number),
        latency_class=LatencyClass.STANDARD,
        critical=False,
        status=200,
        code=None,
        ttft_s=0.5,
        total_s=2.0,
        prompt_tokens=30,
        asked_tokens=10,
        completion_tokens=10,
        arrivals=((number + 0.5, 4), (number + 2.0, 6)),
        model="dense",
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def model_sample(level: int = 0, **fields: object) -> ModelSample:
    names = ("normal", "conservative_sampling", "fp8_kv", "twin", "shed")
    precision = "fp8" if level > 1 else "bfloat16"
    made = ModelSample(level, names[level], precision, 0.2 * level, 22, POOL, level, level, 0, 0, 0, 0, 0, False)
    return replace(made, **fields)  # type: ignore[arg-type]


def samples(levels: tuple[int, ...], preemptions: int) -> tuple[Sample, ...]:
    """One a second, with the preemptions coming evenly."""
    last = len(levels) - 1
    return tuple(
        Sample(
            float(at),
            {
                "dense": model_sample(level, preemptions=7 + preemptions * at // last, switches=int(level > 1)),
                "mini": model_sample(kv_usage=0.1),
            },
            engine_deaths=0,
        )
        for at, level in enumerate(levels)
    )


def run(arm: str, number: int, in_target: int, preemptions: int = 4) -> ArmRun:
    """Ten requests, of which the first `in_target` came in time."""
    outcomes = tuple(outcome(at, total_s=2.0 if at < in_target else 40.0) for at in range(10))
    levels = (0, 0, 0) if arm == "ladder off" else (0, 2, 4, 1, 0)
    seen = samples(levels, preemptions)
    row = {
        "at": 1001.5,
        "model": "dense",
        "level_before": 0,
        "level": 2,
        "level_name": "fp8_kv",
        "kv_before": "bfloat16",
        "kv_after": "fp8",
        "pause_s": 0.12,
        "preempted": 3,
        "reason": "95% of its KV cache is in use",
        "error": None,
    }
    figures = figures_of(outcomes, seen, PHASES, POOL)
    return ArmRun(arm, number, 1000.0, 1060.0, outcomes, seen, figures, () if arm == "ladder off" else (row,))
