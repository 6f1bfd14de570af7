"""The arms of the pressure scenario, and how a running cluster is brought from one to the next."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import yaml

from loadtests.client import Connection, Exchange
from loadtests.driver import encode_chat
from loadtests.pressure_figures import ArmRun, figures_of
from loadtests.pressure_outcomes import Outcome, outcome_of
from loadtests.pressure_samples import EVERY_S, Observer, Sample, SampleError, sample_of, watching
from loadtests.pressure_workload import Phases, Turn
from loadtests.running_cluster import ClusterError, pointsman
from loadtests.targets import Target

MAX_IN_FLIGHT: Final = 500
"""Requests at a time; one more waits in the client, and its time runs."""
REQUEST_TIMEOUT_S: Final = 90.0
REST_S: Final = 180.0
"""Seconds in which a cluster must come to rest before a run."""
UP_AGAIN_S: Final = 40.0
"""Seconds after the last answer in which a run goes on to be watched while the ladder goes up."""
_EVERY_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class Arm:
    """One setting of the ladder: fields of the config's section `precision`."""

    name: str
    precision: Mapping[str, Any]


OFF: Final = Arm("ladder off", {"enabled": False})
KV_ONLY: Final = Arm("KV only", {"enabled": True, "levels": ["fp8_kv"]})
FULL: Final = Arm("full ladder", {"enabled": True})
ARMS: Final = (OFF, KV_ONLY, FULL)


def order(number: int) -> tuple[Arm, ...]:
    """The arms of a round: every round begins with the next one, and every second one goes backwards, so that drift cancels out."""
    first = number % len(ARMS)
    arms = ARMS[first:] + ARMS[:first]
    return arms[::-1] if number % 2 else arms


def config_of(base: str, arm: Arm) -> str:
    """The config of an arm, YAML: `base` with the arm's ladder. All else is the same, admission, too."""
    document = yaml.safe_load(base)
    document["precision"] = {**(document.get("precision") or {}), **arm.precision}
    return yaml.safe_dump(document, sort_keys=False)


@dataclass(frozen=True, slots=True)
class Scene:
    """Where the arms run."""

    target: Target
    model: str
    state_dir: Path
    base: str
    """Text of the cluster's config."""
    phases: Phases
    pool_tokens: int
    """Tokens that the model's KV cache holds at its own precision."""
    say: Callable[[str], None]


def apply(scene: Scene, text: str) -> None:
    """Bring a config into force. Raises `ClusterError`."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", prefix="pressure-") as file:
        file.write(text)
        file.flush()
        done = pointsman("config", "apply", file.name, "--state-dir", str(scene.state_dir), "--json")
    if done.returncode != 0:
        raise ClusterError(f"`pointsman config apply` failed: {done.stderr.strip()[-600:]}")


async def until_at_rest(observer: Observer, timeout_s: float) -> Sample | None:
    """Until every model is at level 0 with nothing to do; None: it was not in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            sample = await observer.now()
        except SampleError:
            sample = None
        if sample is not None and all(model.at_rest for model in sample.models.values()):
            return sample
        await asyncio.sleep(_EVERY_S)
    return None


async def run_arm(scene: Scene, observer: Observer, arm: Arm, number: int, turns: Sequence[Turn]) -> ArmRun:
    """One run, from rest to rest. Raises `ClusterError` if the cluster does not come to rest before it."""
    if await until_at_rest(observer, 0.5) is None:
        # What pressure does not end, switching the ladder off does.
        apply(scene, config_of(scene.base, OFF))
    if await until_at_rest(observer, REST_S) is None:
        raise ClusterError(f"the cluster did not come to rest within {REST_S:g} s; see `pointsman precision`")
    apply(scene, config_of(scene.base, arm))
    # The ingress takes the config on in its own time; what it looks at, it looks at four times a second.
    await asyncio.sleep(1.0)
    began, began_at = time.perf_counter(), time.time()
    async with watching(observer, began):
        outcomes = await offer(scene.target, scene.model, turns, began)
        await asyncio.sleep(1.0)
        await _up_again(scene)
        # Whatever that saw is in the samples, too.
        await asyncio.sleep(2 * EVERY_S)
    samples = tuple(sample_of(look) for look in observer.looks)
    if observer.missed:
        scene.say(f"warning: {observer.missed} looks at the cluster were not answered")
    figures = figures_of(outcomes, samples, scene.phases, scene.pool_tokens)
    return ArmRun(arm.name, number, began_at, time.time(), tuple(outcomes), samples, figures)


async def _up_again(scene: Scene) -> None:
    async with Observer(scene.target) as second:
        await until_at_rest(second, UP_AGAIN_S)


async def offer(target: Target, model: str, turns: Sequence[Turn], began: float) -> list[Outcome]:
    """Send every request at its time after `began`, whatever became of those before, and wait for all."""
    places = asyncio.Semaphore(MAX_IN_FLIGHT)
    free: list[Connection] = []
    everyone: list[Connection] = []

    async def one(turn: Turn) -> tuple[Turn, Exchange]:
        request = encode_chat(target, turn.body(model))
        await asyncio.sleep(max(0.0, began + turn.at_s - time.perf_counter()))
        async with places:
            if not free:
                free.append(Connection(target))
                everyone.append(free[-1])
            connection = free.pop()
            try:
                return turn, await connection.send(request, REQUEST_TIMEOUT_S)
            finally:
                free.append(connection)

    try:
        ended = await asyncio.gather(*(one(turn) for turn in turns))
    finally:
        for connection in everyone:
            connection.close()
    await asyncio.sleep(0)
    return [outcome_of(turn, exchange, began) for turn, exchange in ended]


def timeline_of(state_dir: Path, since: float) -> list[dict[str, Any]]:
    """The changes of precision since a Unix time, the oldest first. Raises `ClusterError`."""
    done = pointsman("precision", "timeline", "--state-dir", str(state_dir), "--limit", "10000", "--json")
    if done.returncode != 0:
        raise ClusterError(f"`pointsman precision timeline` failed: {done.stderr.strip()[-600:]}")
    return [row for row in json.loads(done.stdout)["changes"] if row["at"] >= since]


def with_timeline(runs: Sequence[ArmRun], rows: Sequence[dict[str, Any]]) -> list[ArmRun]:
    """Each run with the changes that were made in it."""
    return [
        replace(run, timeline=tuple(row for row in rows if run.began_at <= row["at"] <= run.ended_at)) for run in runs
    ]
