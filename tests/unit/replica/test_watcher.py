"""The watcher with a fake engine and a fake clock: seconds pass without anybody waiting for them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from cluster.config.model import ReplicaConfig
from deployments.engines.protocol import EngineDeadError
from deployments.replica.watcher import EngineWatcher, WatchLimits

PID = 77
TICKS_PER_S = 100
SHIPPED = WatchLimits.of(ReplicaConfig().stall_timeout_s)
"""What a replica watches with unless its model's configuration says otherwise."""


@dataclass
class World:
    """An engine process, its heartbeat and the time."""

    now: float = 0.0
    state: str | None = "S"
    computing: bool = False
    answers_after_s: float | None = 0.0
    """None: never."""
    pids: tuple[int, ...] = (PID,)
    stopped_worker: int | None = None
    failure: Exception | None = None
    events: dict[float, dict[str, object]] = field(default_factory=dict)
    """What changes when: a time, and the fields that get new values."""
    late_s: float = 0.0
    """How much later than asked the watcher wakes up next."""
    ticks: float = 0.0
    asked: list[float] = field(default_factory=list)

    async def sleep(self, seconds: float) -> None:
        self.now += seconds + self.late_s
        self.late_s = 0.0
        if self.computing and self.state != "T":
            self.ticks += seconds * TICKS_PER_S
        for time in [time for time in self.events if time <= self.now]:
            for name, value in self.events.pop(time).items():
                setattr(self, name, value)
        for _ in range(5):
            await asyncio.sleep(0)

    async def heartbeat(self) -> None:
        asked = self.now
        self.asked.append(asked)
        if self.failure is not None:
            raise self.failure
        while self.answers_after_s is None or self.now < asked + self.answers_after_s or self.state == "T":
            await asyncio.sleep(0)


class Engine:
    def __init__(self, world: World) -> None:
        self._world = world

    def pids(self) -> tuple[int, ...]:
        return self._world.pids

    async def heartbeat(self) -> None:
        await self._world.heartbeat()


async def watch(world: World, monkeypatch: pytest.MonkeyPatch, until_s: float = 300.0) -> str | None:
    """The reason that the watcher gives, or None if it gives none until `until_s`."""
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: world.now)
    watcher = EngineWatcher(
        Engine(world),
        SHIPPED,
        lambda _: world.state,
        lambda _: int(world.ticks),
        lambda _: world.stopped_worker,
        sleep=world.sleep,
    )
    watching = asyncio.create_task(watcher.watch())
    while world.now < until_s and not watching.done():
        await asyncio.sleep(0)
    if watching.done():
        return watching.result()
    watching.cancel()
    return None


async def test_a_healthy_engine_is_asked_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    assert await watch(world, monkeypatch, until_s=100.0) is None
    assert 90 <= len(world.asked) <= 100


@pytest.mark.parametrize("state", ["Z", "X", None])
async def test_a_dead_process_is_found_at_once(monkeypatch: pytest.MonkeyPatch, state: str | None) -> None:
    world = World(events={10.1: {"state": state}})
    reason = await watch(world, monkeypatch)
    assert reason == f"its process {PID} died"
    assert world.now <= 10.5


@pytest.mark.parametrize("at", [10.0, 10.3, 10.6, 10.9])
@pytest.mark.parametrize("computing", [True, False])
async def test_a_stopped_process_is_found_within_five_seconds(
    monkeypatch: pytest.MonkeyPatch, at: float, computing: bool
) -> None:
    world = World(computing=computing, events={at: {"state": "T"}})
    reason = await watch(world, monkeypatch)
    assert reason is not None
    assert "stopped or deadlocked" in reason
    assert world.now <= at + 4.5


async def test_a_deadlocked_engine_is_found_although_its_process_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(events={10.0: {"answers_after_s": None}})
    reason = await watch(world, monkeypatch)
    assert reason is not None
    assert world.now <= 14.5


async def test_a_long_prefill_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(computing=True, answers_after_s=30.0)
    assert await watch(world, monkeypatch, until_s=200.0) is None


async def test_a_prefill_that_computes_with_pauses_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = {10.0 + 1.5 * n: {"computing": bool(n % 2)} for n in range(10)}
    world = World(computing=True, answers_after_s=20.0, events=pauses)
    assert await watch(world, monkeypatch, until_s=29.0) is None


@pytest.mark.parametrize("at", [10.0, 10.3, 10.6, 10.9])
async def test_a_stopped_worker_is_found_although_the_core_spins(monkeypatch: pytest.MonkeyPatch, at: float) -> None:
    world = World(computing=True, events={at: {"stopped_worker": 99, "answers_after_s": None}})
    reason = await watch(world, monkeypatch)
    assert reason is not None
    assert "process 99 is stopped" in reason
    assert world.now <= at + 4.5


@pytest.mark.parametrize("late_s", [3.0, 30.0, 300.0])
@pytest.mark.parametrize("at", [10.0, 10.25, 10.5, 10.75])
async def test_a_watcher_that_was_stopped_itself_blames_nobody(
    monkeypatch: pytest.MonkeyPatch, at: float, late_s: float
) -> None:
    """The answer to its heartbeat came meanwhile and is read a moment after it wakes up."""
    world = World(answers_after_s=0.4, events={at: {"late_s": late_s, "answers_after_s": 0.4 + late_s}})
    assert await watch(world, monkeypatch, until_s=at + late_s + 0.9) is None


async def test_a_watcher_that_was_stopped_still_finds_a_hung_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(events={10.0: {"answers_after_s": None}, 11.5: {"late_s": 60.0}})
    reason = await watch(world, monkeypatch)
    assert reason is not None
    assert "stopped or deadlocked" in reason
    assert world.now <= 75.5


async def test_an_engine_that_computes_for_ever_is_stalled(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(computing=True, events={10.0: {"answers_after_s": None}})
    reason = await watch(world, monkeypatch)
    assert reason is not None
    assert "stalled" in reason
    assert 60.0 <= world.now <= 73.0


async def test_an_engine_without_processes_may_only_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(pids=(), answers_after_s=50.0)
    assert await watch(world, monkeypatch, until_s=200.0) is None
    world = World(pids=(), answers_after_s=None)
    reason = await watch(world, monkeypatch)
    assert reason is not None
    assert "stalled" in reason


async def test_a_heartbeat_that_says_dead_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(events={10.0: {"failure": EngineDeadError("the core is gone")}})
    assert await watch(world, monkeypatch) == "the core is gone"
    assert world.now <= 11.5


async def test_a_heartbeat_that_fails_otherwise_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = await watch(World(failure=RuntimeError("odd")), monkeypatch)
    assert reason == "its heartbeat failed: RuntimeError: odd"


async def test_who_stops_watching_leaves_no_task_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(answers_after_s=None, computing=True)
    assert await watch(world, monkeypatch, until_s=20.0) is None
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize(("told_s", "busy_s"), [(3.0, 60.0), (120.0, 120.0)])
def test_a_busy_engine_is_given_at_least_what_an_idle_one_is(told_s: float, busy_s: float) -> None:
    limits = WatchLimits.of(told_s)
    assert (limits.idle_silence_s, limits.stall_s) == (told_s, busy_s)
