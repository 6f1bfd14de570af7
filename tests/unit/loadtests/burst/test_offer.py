from __future__ import annotations

import asyncio
import time

import pytest

from loadtests.burst.load import Kind, Phases, Request, requests_of, saturating
from loadtests.burst.offer import SteadyOffer, offer, saturate
from loadtests.burst.watch import Watch, WatchError, watching
from tests.unit.loadtests.burst.pool_cluster import Behaviour, serving


def made(number: int, at_s: float) -> Request:
    return Request(number, at_s, Kind.CODE, f"{number}. Sort a list.", 4)


async def test_every_request_is_sent_at_its_time_whatever_became_of_those_before() -> None:
    behaviour = Behaviour(takes_s=0.5)
    requests = requests_of(1, 40.0, Phases(0.2, 0.2, 0.2, 0.2), 4)
    async with serving(behaviour) as target:
        began = time.perf_counter()
        outcomes = await offer(target, "sparse", requests, began)
        took_s = time.perf_counter() - began
    assert len(outcomes) == len(requests) == len(behaviour.bodies) > 8
    assert [one.number for one in outcomes] == [one.number for one in requests]
    assert all(one.problem is None and one.total_s >= 0.5 and one.rows == 15 for one in outcomes)
    # One after the other they would have taken many times as long.
    assert took_s < 3.0


async def test_saturating_keeps_so_many_under_way_for_a_time() -> None:
    behaviour = Behaviour(takes_s=0.1)
    async with serving(behaviour) as target:
        outcomes = await saturate(target, "sparse", saturating(1, 500, 4), streams=4, seconds=0.45)
    assert len(outcomes) % 4 == 0 and 8 <= len(outcomes) <= 20
    assert max(one.at_s for one in outcomes) < 0.45


async def test_a_stream_that_is_refused_ends_and_says_why() -> None:
    async with serving(Behaviour(status=503)) as target:
        outcomes = await saturate(target, "sparse", saturating(1, 500, 4), streams=3, seconds=5.0)
    assert [one.problem for one in outcomes] == ["saturated"] * 3


async def test_steady_load_waits_for_what_is_under_way() -> None:
    async with serving(Behaviour(takes_s=0.3)) as target, SteadyOffer(target, "sparse", 50.0, 5.0, made) as load:
        await asyncio.sleep(0.2)
        assert not load.outcomes
    assert len(load.outcomes) >= 5 and all(one.problem is None for one in load.outcomes)


async def test_what_has_no_answer_within_the_limit_hangs() -> None:
    async with serving(Behaviour(silent=True)) as target, SteadyOffer(target, "sparse", 50.0, 0.2, made) as load:
        await asyncio.sleep(0.05)
    assert load.outcomes and {one.problem for one in load.outcomes} == {"timeout"}


async def test_a_cluster_is_watched_while_a_run_goes_on() -> None:
    async with serving(Behaviour()) as target:
        watch = Watch(target, "sparse", time.perf_counter())
        async with watching(watch):
            await asyncio.sleep(0.2)
        now = await watch.now()
        watch.close()
    assert [pool.name for pool in now.pools] == ["0", "1"] and now.running == 1
    assert [len(pool.replicas) for pool in watch.samples()[0].pools] == [2, 1] and watch.missed == 0


async def test_a_look_that_is_not_answered_is_an_error() -> None:
    async with serving(Behaviour()) as target:
        watch = Watch(target, "other", time.perf_counter())
        with pytest.raises(WatchError, match="does not tell"):
            await watch.now()
        watch.close()
