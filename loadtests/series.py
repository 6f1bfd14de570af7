"""Runs alternating pairs of two arms on one machine, each run in a quiet moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from loadtests.driver import LoadPlan, drive
from loadtests.machine import engines_of_nobody
from loadtests.pairs import Comparison, Pair, compare, orders, run_pair, unfair
from loadtests.quiet import wait_until_quiet
from loadtests.records import RunSummary
from loadtests.stats import median

_PATIENCE_S: Final = 20.0
_SEEDS_PER_STREAM_COUNT: Final = 1000


@dataclass(frozen=True, slots=True)
class Arm:
    """One side of a comparison."""

    name: str
    plan: LoadPlan
    """Where and what to ask; streams, requests and seed are set per run."""
    pids: Callable[[], set[int]]
    """Its processes at the moment of the call; empty if they are not to be watched."""
    prepare: Callable[[], None] = lambda: None
    """Called before each of its runs."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One number of streams, and how much to send in it."""

    streams: int
    requests: int


class UnfairError(RuntimeError):
    """The two arms did not do the same work, so no ratio is shown."""


class Series:
    """All pairs of a comparison."""

    def __init__(self, baseline: Arm, measured: Arm, say: Callable[[str], None]) -> None:
        self._baseline = baseline
        self._measured = measured
        self._say = say
        self.pairs: list[Pair] = []
        self.warnings: list[str] = []
        self._resting: dict[str, list[float]] = {}

    def check_machine(self) -> None:
        """Warn about engines that belong to neither arm: they take memory and CPU from both."""
        for seen in engines_of_nobody(self._baseline.pids() | self._measured.pids()):
            self._warn(f"an engine of an earlier run seems to be left: pid {seen.pid}, {seen.title[:60]!r}")

    def warm(self, shape: Shape) -> None:
        """One unmeasured run of each arm, so that neither pays for what happens once."""
        for arm in (self._baseline, self._measured):
            arm.prepare()
            summary = asyncio.run(drive(self._plan(arm, shape, seed=999)))
            if summary.errors:
                raise UnfairError(f"{arm.name} fails already at warm-up: {summary.errors}")
            if summary.simulated:
                self._warn(f"{arm.name} is answered by {', '.join(summary.answered_by)}: no model is measured")

    def run(self, shape: Shape, pairs: int, seed: int = 0) -> Comparison:
        """Run alternating pairs and compare them. Raises `UnfairError` if the arms did different work.

        Both runs of a pair send the same prompts, and no prompt is sent twice to one server: both prefix caches are
        equally cold.
        """
        done = []
        for number, measured_first in enumerate(orders(pairs)):
            run_seed = seed + shape.streams * _SEEDS_PER_STREAM_COUNT + number

            def run(is_measured: bool, run_seed: int = run_seed) -> RunSummary:
                return self._run_one(is_measured, shape, run_seed)

            pair = run_pair(shape.streams, number, measured_first, run)
            self.pairs.append(pair)
            done.append(pair)
            if problems := unfair(pair):
                raise UnfairError("; ".join(problems))
            self._say(
                f"{shape.streams} streams, pair {number + 1} of {pairs}: {self._baseline.name} "
                f"{pair.baseline.tokens_per_s:.1f}, {self._measured.name} {pair.measured.tokens_per_s:.1f} tokens/s, "
                f"ratio {pair.measured.tokens_per_s / pair.baseline.tokens_per_s:.3f}"
            )
        return compare(done)

    def resting_cores(self) -> dict[str, float]:
        """By arm: CPU cores that it takes while it rests, median over the runs of the other one."""
        return {name: median(cores) for name, cores in self._resting.items()}

    def _run_one(self, is_measured: bool, shape: Shape, seed: int) -> RunSummary:
        arm, other = (self._measured, self._baseline) if is_measured else (self._baseline, self._measured)
        arm.prepare()
        quiet = wait_until_quiet(other.pids(), _PATIENCE_S, self._warn)
        self._resting.setdefault(other.name, []).append(quiet.resting_cores)
        return asyncio.run(drive(self._plan(arm, shape, seed)))

    def _plan(self, arm: Arm, shape: Shape, seed: int) -> LoadPlan:
        return replace(arm.plan, streams=shape.streams, requests=shape.requests, warm_up=shape.streams, seed=seed)

    def _warn(self, message: str) -> None:
        self.warnings.append(message)
        self._say(f"warning: {message}")


def comparisons_of(series: Series, shapes: Sequence[Shape], pairs: int, seed: int) -> list[Comparison]:
    """Warm up, check the machine, and compare at every shape."""
    series.check_machine()
    series.warm(shapes[0])
    return [series.run(shape, pairs, seed) for shape in shapes]


def shape_for(streams: int, max_tokens: int, seconds: float) -> Shape:
    """Requests for runs of about `seconds`, from what an engine on two cores does: 45 tokens/s alone, 400 together."""
    tokens = seconds * min(400, 45 * streams)
    waves = max(2, round(tokens / max_tokens / streams))
    return Shape(streams, waves * streams)
