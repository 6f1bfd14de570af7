"""One arm of one round on a cluster of its own, and the measurement of what a lone replica of each pool can serve."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cluster.config.pools import PoolsConfig
from loadtests.burst.arms import Arm, Terms, config_of, parsed
from loadtests.burst.figures import ArmRun, figures_of, rows_per_s
from loadtests.burst.load import Kind, Phases, Request, saturating
from loadtests.burst.offer import Outcome, offer, saturate
from loadtests.burst.watch import Sample, Watch, WatchError, watching
from loadtests.running_cluster import ClusterError, RunningCluster, served_models
from loadtests.stats import median
from loadtests.targets import Target, parse_target

REST_S: Final = 90.0
"""Seconds in which a cluster must have nothing to do before a run, and as many replicas as it begins with."""
STREAMS: Final = 32
PROBE_REQUESTS: Final = 4_000


@dataclass(frozen=True, slots=True)
class Scene:
    """What all arms have in common."""

    base: str
    """Text of the base config."""
    model: str
    terms: Terms
    phases: Phases
    max_tokens: int
    key: str | None
    state_dir: Path | None
    say: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one replica of each pool serves when more is asked for than it can."""

    rows_per_s: float
    """Tokens computed a second, prompts too."""
    rows: float
    """Of a request, mean of both surges' kinds."""
    by_quota: float
    """Tokens a second that the quota allows if all pools are used evenly, and the engine takes no time."""
    quota_used: float
    """Of its quota the busiest pool computed, 0 to 1."""
    waiting_share: float
    """Of the time, in which the engine waited for pools."""

    def rate(self, times: float) -> float:
        """Requests a second that ask for so many times what is served."""
        return times * self.rows_per_s / self.rows


@dataclass(frozen=True, slots=True)
class Stage:
    """A cluster of an arm that runs."""

    scene: Scene
    arm: Arm
    target: Target
    cluster: RunningCluster
    high: float
    """Share of what its replicas can compute above which a pool gains one."""


@contextmanager
def stage(scene: Scene, arm: Arm) -> Iterator[Stage]:
    """A cluster of its own for an arm, up and at rest; stopped at the end. Raises `ClusterError`, `ConfigError`."""
    text = config_of(scene.base, scene.model, arm, scene.terms)
    config = parsed(text)
    pools = config.models[scene.model].pools or PoolsConfig()
    target = parse_target(f"http://{config.ingress.host}:{config.ingress.port}", scene.key)
    if served_models(target.root, scene.key):
        raise ClusterError(f"a cluster answers at {target.root}; each arm starts its own, so stop it or give --port")
    with tempfile.TemporaryDirectory(prefix="burst-") as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(text, encoding="utf-8")
        state_dir = scene.state_dir or Path(folder) / "state"
        with RunningCluster(target.root, file, state_dir, scene.key, scene.say) as cluster:
            cluster.wait_for(scene.model)
            yield Stage(scene, arm, target, cluster, pools.high)


def measure_capacity(on: Stage, seconds: float, seed: int) -> Capacity:
    """Ask for more than can be served, for a time. Raises `ClusterError`."""
    return asyncio.run(_measure_capacity(on, seconds, seed))


def run_arm(on: Stage, number: int, requests: Sequence[Request]) -> ArmRun:
    """One run. Raises `ClusterError` if the cluster does not come to rest before it."""
    return asyncio.run(_run_arm(on, number, requests))


async def _measure_capacity(on: Stage, seconds: float, seed: int) -> Capacity:
    scene = on.scene
    await at_rest(on)
    watch = Watch(on.target, scene.model, time.perf_counter())
    try:
        asked = saturating(seed, PROBE_REQUESTS, scene.max_tokens)
        async with watching(watch):
            outcomes = await saturate(on.target, scene.model, asked, STREAMS, seconds)
    finally:
        watch.close()
    return capacity_of(outcomes, watch.samples(), seconds)


def capacity_of(outcomes: Sequence[Outcome], samples: Sequence[Sample], seconds: float) -> Capacity:
    """What was served in the last two thirds of the time. Raises `ClusterError` if requests failed or nobody told of pools."""
    failed = {one.problem for one in outcomes if one.problem is not None}
    told = [sample for sample in samples if seconds / 3 <= sample.at_s < seconds]
    if failed or not outcomes or not told:
        why = f"requests failed: {failed}" if failed else "the cluster told nothing of its pools"
        raise ClusterError(f"what a replica of each pool can serve could not be measured: {why}")
    used = [
        max(
            (pool.pairs_per_s / pool.capacity_pairs_per_s for pool in sample.pools if pool.capacity_pairs_per_s),
            default=0.0,
        )
        for sample in told
    ]
    by_kind = [[one.rows for one in outcomes if one.kind is kind] for kind in (Kind.CODE, Kind.STORY)]
    means = [sum(rows) / len(rows) for rows in by_kind if rows]
    first = told[0]
    return Capacity(
        rows_per_s=rows_per_s(outcomes, seconds / 3, seconds),
        rows=sum(means) / len(means),
        by_quota=sum(pool.capacity_pairs_per_s for pool in first.pools) / (first.layers * first.top_k),
        quota_used=median(used),
        waiting_share=sum(one.wait_s for one in outcomes) / sum(one.total_s for one in outcomes),
    )


async def _run_arm(on: Stage, number: int, requests: Sequence[Request]) -> ArmRun:
    scene = on.scene
    await at_rest(on)
    began, began_at = time.perf_counter(), time.time()
    watch = Watch(on.target, scene.model, began)
    try:
        async with watching(watch):
            outcomes = await offer(on.target, scene.model, requests, began)
            # The last changes are told a second later.
            await asyncio.sleep(2.0)
    finally:
        watch.close()
    samples = watch.samples()
    figures = figures_of(outcomes, samples, scene.phases, on.high, began_at, watch.missed)
    if figures.completed and figures.simulated is not scene.terms.simulated:
        raise ClusterError(f"the answers do not come from a {'simulated' if scene.terms.simulated else 'real'} engine")
    return ArmRun(on.arm.name, number, began_at, tuple(outcomes), samples, figures)


async def at_rest(on: Stage) -> None:
    """Until every pool has the replicas that it begins with, and nothing is to do. Raises `ClusterError`."""
    deadline = time.monotonic() + REST_S
    warm, wanted = saturating(10**6, 2, 4), on.arm.replicas or 1
    while time.monotonic() < deadline:
        watch = Watch(on.target, on.scene.model, time.perf_counter())
        try:
            sample = await watch.now()
            if not sample.running + sample.waiting and all(
                len(one.replicas) == one.target == wanted for one in sample.pools
            ):
                return
        except WatchError:
            # It tells of experts once its engine has computed something.
            await offer(on.target, on.scene.model, warm, time.perf_counter())
        finally:
            watch.close()
        await asyncio.sleep(0.5)
    raise ClusterError(
        f"the pools did not come to rest with {wanted} replicas each within {REST_S:g} s; see `pointsman experts`"
    )
