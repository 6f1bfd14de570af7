"""The waiting room of an ingress."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from cluster.admission.asking import Asking
from cluster.admission.decision import Held
from cluster.api.errors import ApiError
from cluster.config.cluster import ClusterConfig
from cluster.routing.latency_class import LatencyClass
from deployments.channel.messages import Hello
from deployments.channel.receiver import AttachedReplica, ChannelReceiver
from deployments.engines.protocol import EngineStats
from deployments.ingress.admission import LOOK_S, AdmissionControl
from deployments.telemetry.metrics import IngressMetrics

REJECT_S = 3 * 0.05


class FixedChannel:
    """A channel with so many replicas."""

    def __init__(self, replicas: int, kv_tokens: int = 0) -> None:
        hello = Hello("secret", "r", "alpha", "scripted", 1, ())
        stats = EngineStats(kv_blocks=kv_tokens, kv_block_tokens=1)
        self.attached = [
            AttachedReplica(hello, cast("asyncio.StreamWriter", None), 0.0, stats) for _ in range(replicas)
        ]

    def replicas(self, _model: str) -> tuple[AttachedReplica, ...]:
        return tuple(self.attached)


def control(channel: FixedChannel, places: int = 1, queue: int = 2, **admission: Any) -> AdmissionControl:
    replicas = {"max_ongoing_requests": places, "target_ongoing_requests": 1, "max_queued_requests": queue}
    model = {"kind": "dense", "roles": ["strong", "fast", "fluency"], "source": "embedded:dense", "replicas": replicas}
    config = ClusterConfig.model_validate({"models": {"alpha": model}, "admission": admission})
    return AdmissionControl(config, cast("ChannelReceiver", channel), IngressMetrics("ingress", config.models))


def asking(tenant: str = "", urgency: LatencyClass = LatencyClass.STANDARD, tokens: int = 10) -> Asking:
    return Asking(tenant, urgency, tokens, 60.0)


class Guest:
    """One request: it enters, and stays until it is told to leave."""

    def __init__(self, admission: AdmissionControl, one: Asking, on_in: Callable[[], None] = lambda: None) -> None:
        self.inside = asyncio.Event()
        self.leave = asyncio.Event()
        self._on_in = on_in
        self.task = asyncio.get_running_loop().create_task(self._stay(admission, one))

    async def _stay(self, admission: AdmissionControl, one: Asking) -> None:
        async with admission.enter("alpha", one):
            self._on_in()
            self.inside.set()
            await self.leave.wait()

    async def go(self) -> None:
        self.leave.set()
        await self.task


async def refusal(admission: AdmissionControl, one: Asking) -> ApiError:
    started = time.perf_counter()
    with pytest.raises(ApiError) as caught:
        async with admission.enter("alpha", one):
            pass
    assert time.perf_counter() - started < REJECT_S
    return caught.value


async def test_nothing_waits_while_there_is_room() -> None:
    admission = control(FixedChannel(2), places=2)
    guests = [Guest(admission, asking()) for _ in range(4)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert all(guest.inside.is_set() for guest in guests)
    for guest in guests:
        await guest.go()


async def test_a_place_that_is_left_goes_to_the_most_urgent_and_past_the_queue_all_are_refused() -> None:
    admission = control(FixedChannel(1))
    order: list[str] = []
    first = Guest(admission, asking())
    await first.inside.wait()
    batch = Guest(admission, asking(urgency=LatencyClass.BATCH), lambda: order.append("batch"))
    person = Guest(admission, asking(urgency=LatencyClass.INTERACTIVE), lambda: order.append("person"))
    await asyncio.sleep(0.01)
    error = await refusal(admission, asking(urgency=LatencyClass.BATCH))
    assert (error.status, error.code) == (503, "saturated")
    assert int(error.headers["retry-after"]) >= 1
    for guest in (first, person, batch):
        await guest.go()
    assert order == ["person", "batch"]


async def test_one_tenant_cannot_fill_the_queue() -> None:
    admission = control(FixedChannel(1), queue=4)
    guests = [Guest(admission, asking("greedy")) for _ in range(3)]
    await asyncio.sleep(0.01)
    error = await refusal(admission, asking("greedy"))
    assert (error.status, error.code) == (429, "tenant_queue_full")
    other = Guest(admission, asking("modest"))
    await asyncio.sleep(0.01)
    assert not other.task.done()
    for guest in (*guests, other):
        guest.leave.set()
    await asyncio.wait_for(asyncio.gather(*(guest.task for guest in (*guests, other))), 5.0)


async def test_who_leaves_the_queue_leaves_nothing_behind() -> None:
    admission = control(FixedChannel(1))
    first = Guest(admission, asking())
    await first.inside.wait()
    for _ in range(10):
        gone = Guest(admission, asking())
        await asyncio.sleep(0)
        gone.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone.task
    await first.go()
    last = Guest(admission, asking())
    await asyncio.wait_for(last.inside.wait(), 1.0)
    await last.go()


async def test_who_leaves_in_the_moment_of_the_call_gives_the_place_back() -> None:
    admission = control(FixedChannel(1))
    first, second = Guest(admission, asking()), Guest(admission, asking())
    await asyncio.sleep(0.01)
    third = Guest(admission, asking())
    await asyncio.sleep(0.01)
    first.leave.set()
    await first.task
    second.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second.task
    await asyncio.wait_for(third.inside.wait(), 1.0)
    await third.go()


async def test_kv_memory_is_reserved_and_a_replica_that_comes_lets_others_in() -> None:
    channel = FixedChannel(1, kv_tokens=100)
    admission = control(channel, places=8, kv_overcommit=1.0)
    guests = [Guest(admission, asking(tokens=60)) for _ in range(2)]
    await asyncio.sleep(0.01)
    assert [guest.inside.is_set() for guest in guests] == [True, False]
    channel.attached *= 2
    await asyncio.wait_for(guests[1].inside.wait(), 4 * LOOK_S)
    for guest in guests:
        await guest.go()


async def test_the_limits_follow_the_config() -> None:
    admission = control(FixedChannel(1), queue=0)
    first = Guest(admission, asking())
    await first.inside.wait()
    assert (await refusal(admission, asking())).code == "saturated"
    admission.follow(control(FixedChannel(1), places=2)._config)
    second = Guest(admission, asking())
    await asyncio.wait_for(second.inside.wait(), 1.0)
    for guest in (first, second):
        await guest.go()


async def test_a_more_urgent_one_takes_the_place_of_who_waits_last() -> None:
    admission = control(FixedChannel(1))
    first = Guest(admission, asking())
    await first.inside.wait()
    batch = [Guest(admission, asking(urgency=LatencyClass.BATCH)) for _ in range(2)]
    await asyncio.sleep(0.01)
    person = Guest(admission, asking(urgency=LatencyClass.INTERACTIVE))
    with pytest.raises(ApiError) as caught:
        await asyncio.wait_for(batch[1].task, REJECT_S)
    assert (caught.value.status, caught.value.code) == (503, "saturated")
    assert int(caught.value.headers["retry-after"]) >= 1
    assert "more urgent" in caught.value.message
    for guest in (first, person, batch[0]):
        await guest.go()
    assert admission._models["alpha"].held == Held()


async def test_retry_after_says_what_the_line_took() -> None:
    admission = control(FixedChannel(1), queue=4)
    first = Guest(admission, asking())
    await first.inside.wait()
    assert admission.retry_after_s("alpha") == 1
    waiting = [Guest(admission, asking()) for _ in range(4)]
    await asyncio.sleep(1.3)
    # Nothing ended in 1.3 s, so five take 6.5 s at best.
    assert 5 <= admission.retry_after_s("alpha") <= 30
    assert int((await refusal(admission, asking())).headers["retry-after"]) >= 5
    for guest in (first, *waiting):
        await guest.go()


async def test_a_long_line_costs_the_event_loop_little() -> None:
    admission = control(FixedChannel(1), queue=2000)
    guests = [Guest(admission, asking(f"tenant-{at % 50}")) for at in range(2000)]
    await asyncio.sleep(0.05)
    started = time.process_time()
    await asyncio.sleep(4 * LOOK_S)
    assert time.process_time() - started < 0.1
    for guest in guests[1:]:
        guest.task.cancel()
    await asyncio.gather(*(guest.task for guest in guests[1:]), return_exceptions=True)
    await guests[0].go()
    assert admission._models["alpha"].look is None


async def test_an_urgent_one_that_fits_does_not_wait_for_those_that_do_not() -> None:
    admission = control(FixedChannel(1, kv_tokens=100), places=8, kv_overcommit=1.0)
    first = Guest(admission, asking(tokens=60))
    await first.inside.wait()
    batch = Guest(admission, asking(urgency=LatencyClass.BATCH, tokens=90))
    await asyncio.sleep(0.01)
    person = Guest(admission, asking(urgency=LatencyClass.INTERACTIVE, tokens=10))
    await asyncio.wait_for(person.inside.wait(), LOOK_S / 5)
    assert not batch.inside.is_set()
    for guest in (person, first, batch):
        await guest.go()
    assert admission._models["alpha"].held == Held()
