"""One run of one arm: requests come, trunks step, pools compute, second by second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cluster.experts.load import Counts
from cluster.experts.placement import Reals, replica_loads
from loadtests.expert_scale.arms import Arm, Policy
from loadtests.expert_scale.queueing import step_s
from loadtests.expert_scale.scene import WARM_UP_S, Scene
from loadtests.expert_scale.traffic import Requests, routed

TICK_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Second:
    """What one second of a run was like."""

    at_s: float
    step_s: float
    """Of a trunk; 0 if nothing ran."""
    running: int
    waiting: int
    """Requests that no trunk has room for."""
    tokens: float
    """Made in it."""
    uneven: float
    """Largest load of a replica in a layer over the mean one, mean over layers."""
    held: int
    """Nodes' worth of weights in memory."""


@dataclass(frozen=True, slots=True)
class Run:
    """All of one run."""

    arm: str
    seconds: tuple[Second, ...]
    latency_s: Reals
    """Of each request that came after the warm-up: its end or the deadline, less its arrival; (requests,)."""
    ended_s: Reals
    cut_off: int
    """Of these, by the deadline."""
    offered_tokens: int
    made_tokens: float
    lost_tokens: float
    """Of requests that were cut off: tokens that were not made."""
    routed: Counts
    """Rows by layer and expert of all that was made."""
    moves: int
    """Pairs loaded by moves."""
    replica_loads: int
    """Pairs loaded by replicas that started."""
    changes: int
    """Of the number of replicas of a pool."""
    second_s: Reals
    """For pairs that became hot after the warm-up: seconds until they had a second replica; 0 if they had one, infinite if
    they cooled down first; (pairs,)."""


@dataclass(slots=True)
class _Flow:
    """Requests under way."""

    left: Reals
    """Tokens that each has to make yet."""
    ended_s: Reals
    began: int = 0
    """Requests that have come."""


def simulate(scene: Scene, arm: Arm, came: Requests, shares: Reals, seed: int, say: Callable[[str], None]) -> Run:
    """Run until all requests have ended. `shares` is (kinds, layers, experts)."""
    source = np.random.default_rng(seed)
    flow = _Flow(came.tokens.astype(np.float64), np.full(len(came.at_s), np.nan))
    running: npt.NDArray[np.int64] = np.zeros(0, np.int64)
    total, owed = scene.shape.zeros(), np.zeros(len(shares))
    seconds: list[Second] = []
    watch = _Watch()
    at_s = 0.0
    while at_s < scene.seconds or np.isnan(flow.ended_s).any():
        here = np.flatnonzero(np.isnan(flow.ended_s) & (came.at_s < at_s + TICK_S))
        running = here[: scene.trunks * scene.batch]
        took, made = 0.0, np.zeros(len(shares))
        placement, replicas = arm.serving(at_s)
        uneven = 0.0
        if len(running):
            mix = np.bincount(came.kind[running], minlength=len(shares))
            took, uneven = _step(scene, arm, placement, replicas, mix, shares, source)
            made = _advance(flow, came, running, took, at_s, len(shares))
        cut = here[(came.at_s[here] + scene.deadline_s <= at_s + TICK_S) & np.isnan(flow.ended_s[here])]
        flow.ended_s[cut] = came.at_s[cut] + scene.deadline_s
        owed += made
        whole = np.floor(owed + 1e-6).astype(np.int64)
        owed -= whole
        total += routed(whole, shares, scene.shape.top_k, source)
        at_s += TICK_S
        if at_s <= scene.seconds:
            # Afterwards the last requests end, and what is left of the heat means nothing.
            arm.observe(total, at_s)
            watch.look(arm, at_s)
        seconds.append(
            Second(at_s, took, len(running), len(here) - len(running), float(made.sum()), uneven, arm.held(at_s))
        )
        if at_s % 20 == 0:
            say(f"{arm.name}: {at_s:.0f} s, step {took * 1000:.0f} ms, {len(here)} requests under way")
    measured = came.at_s >= WARM_UP_S
    latency = flow.ended_s - came.at_s
    policy = arm if isinstance(arm, Policy) else None
    return Run(
        arm=arm.name,
        seconds=tuple(seconds),
        latency_s=latency[measured],
        ended_s=flow.ended_s[measured],
        cut_off=int((flow.left[measured] > 0).sum()),
        offered_tokens=int(came.tokens.sum()),
        made_tokens=float(came.tokens.sum() - flow.left.sum()),
        lost_tokens=float(flow.left.sum()),
        routed=total,
        moves=0 if policy is None else policy.moves,
        replica_loads=0 if policy is None else policy.replica_loads,
        changes=0 if policy is None else policy.changes,
        second_s=watch.waits(),
    )


def _step(
    scene: Scene,
    arm: Arm,
    placement: npt.NDArray[np.bool_],
    replicas: Reals,
    mix: npt.NDArray[np.int64],
    shares: Reals,
    source: np.random.Generator,
) -> tuple[float, float]:
    """Seconds of a step with a batch of that mix, by kind, and how uneven the load of the replicas is on average."""
    # A batch as one trunk of many has it, drawn: small batches are uneven whatever the placement.
    batch = source.multinomial(max(1, round(mix.sum() / scene.trunks)), mix / mix.sum())
    rows = routed(batch, shares, scene.shape.top_k, source).astype(np.float64)
    mean = np.tensordot(mix / mix.sum(), shares, axes=1)
    loads = replica_loads(placement, mean, replicas)[replicas > 0]
    uneven = float((loads.max(axis=0) / (mean.sum(axis=1) / replicas.sum())).mean())
    return step_s(scene, placement, replicas, rows, scene.trunks // arm.groups), uneven


def _advance(
    flow: _Flow, came: Requests, running: npt.NDArray[np.int64], took_s: float, at_s: float, kinds: int
) -> Reals:
    """Let the running requests make tokens for a tick, one a step each. Tokens made, by kind, (kinds,)."""
    since = np.maximum(came.at_s[running], at_s)
    could = (at_s + TICK_S - since) / took_s
    made = np.minimum(could, flow.left[running])
    done = could >= flow.left[running]
    flow.ended_s[running[done]] = (since + flow.left[running] * took_s)[done]
    flow.left[running] = np.where(done, 0.0, flow.left[running] - made)
    return np.bincount(came.kind[running], weights=made, minlength=kinds).astype(np.float64)


class _Watch:
    """How long pairs that become hot wait for a second replica."""

    def __init__(self) -> None:
        self._since: dict[tuple[int, int], float] = {}
        self._waits: dict[tuple[int, int], float] = {}

    def look(self, arm: Arm, at_s: float) -> None:
        """Once a second."""
        if not isinstance(arm, Policy) or at_s <= WARM_UP_S:
            return
        copies = arm.copies(at_s)
        for pair, since_s in arm.hot.items():
            if since_s > WARM_UP_S and pair not in self._waits:
                first = self._since.setdefault(pair, since_s)
                if copies[pair] >= 2:
                    self._waits[pair] = at_s - first if at_s > first else 0.0

    def waits(self) -> Reals:
        """Of all pairs that became hot."""
        return np.array([self._waits.get(pair, np.inf) for pair in self._since])
