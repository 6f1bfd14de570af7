"""The deployment that knows a model's pools, without Ray: what it is told, what it tells, and what it has Serve do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from cluster.config.model import ModelConfig
from cluster.config.operations import TelemetryConfig
from cluster.experts import balancing
from cluster.experts.balancing import Report, holding_of
from cluster.experts.placement import round_robin
from cluster.experts.pools import PoolMap, parse_pool_map
from cluster.experts.pools_view import PoolsView
from deployments.pools import keeper as module
from deployments.pools.checkpoint import open_checkpoint
from deployments.pools.keeper import PoolsKeeper
from deployments.pools.spec import PoolsSpec

pytestmark = pytest.mark.asyncio

LAYERS, EXPERTS = 2, 4


def spec(state_dir: Path, **pools: Any) -> PoolsSpec:
    model = {
        "kind": "sparse",
        "roles": ["code"],
        "source": "embedded:sparse",
        "engine": {
            "type": "simulated",
            "simulated": {"experts": {"layers": LAYERS, "experts": EXPERTS, "top_k": 2}},
        },
        "pools": {"quota_pairs_per_s": 1000, "uneven": None, **pools},
    }
    return PoolsSpec("moe", ModelConfig.model_validate(model), None, TelemetryConfig(), state_dir, "pools-moe")


class Cluster:
    """The deployment and the Serve that it scales."""

    def __init__(self) -> None:
        self.scaled: list[tuple[str, int]] = []
        self.pools: PoolsKeeper

    async def scale(self, pool: str, count: int) -> None:
        self.scaled.append((pool, count))

    async def tell(self, pool: int, replica: str, pairs: int = 0, node: str = "here", holds: Any = None) -> Any:
        placement = round_robin(LAYERS, EXPERTS, 2)
        tokens = placement[pool].astype("int64") * (pairs // int(placement[pool].sum()))
        held = holding_of(placement, pool, range(LAYERS)) if holds is None else holds
        report = Report(str(pool), replica, node, f"unix:/{replica}", f"tcp:{node}:1", held, tokens, 0.0, 0, 64, 7)
        return await self.pools.told(report)

    async def map(self, known: int = 0, node: str = "here", trunk: str = "trunk") -> PoolMap:
        told = await self.pools.map(trunk, node, known, known)
        assert told is not None
        return parse_pool_map(told)

    async def view(self) -> PoolsView:
        return msgspec.json.decode(await self.pools.view(), type=PoolsView)


def started(cluster: Cluster, wanted: PoolsSpec, targets: dict[str, int] | None = None) -> None:
    cluster.pools = PoolsKeeper(wanted, open_checkpoint(wanted), targets or {}, cluster.scale)
    cluster.pools.start()


@pytest_asyncio.fixture
async def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster()
    monkeypatch.setattr(module, "LOOK_S", 0.02)
    monkeypatch.setattr(module, "ASK_S", 0.3)
    started(made, spec(tmp_path))
    yield made
    made.pools.stop()


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.02)


async def test_trunks_are_told_once_every_pool_has_a_replica(cluster: Cluster) -> None:
    await cluster.tell(0, "a")
    assert await cluster.pools.map("trunk", "here", 0, 0) is None
    await cluster.tell(1, "b", node="there")
    told = await cluster.map()
    assert [[one.address for one in pool.replicas] for pool in told.pools] == [["unix:/a"], ["tcp:there:1"]]
    assert told.pools[1].holds == {layer: frozenset({1, 3}) for layer in range(LAYERS)}
    assert abs(told.version / 1000 - time.time()) < 60, "one that is started anew goes on above the one before it"


async def test_a_question_is_kept_open_until_something_changes(cluster: Cluster) -> None:
    await cluster.tell(0, "a")
    await cluster.tell(1, "b")
    first = await cluster.map()
    asking = asyncio.create_task(cluster.map(first.version))
    await asyncio.sleep(0.05)
    assert not asking.done()
    await cluster.tell(1, "c")
    second = await asking
    assert second.version > first.version
    assert [one.name for one in second.pools[1].replicas] == ["b", "c"]
    await cluster.tell(1, "c")
    assert await cluster.pools.map("trunk", "here", second.version, second.version) is None, (
        "the same report is nothing new"
    )


async def test_a_hot_pool_gets_a_second_replica_and_says_how_long_that_took(cluster: Cluster) -> None:
    async def work() -> None:
        begun = time.monotonic()
        while not cluster.scaled:
            await cluster.tell(0, "a", pairs=int(3000 * (time.monotonic() - begun)))
            await cluster.tell(1, "b")
            await asyncio.sleep(0.05)

    await asyncio.wait_for(work(), 10)
    assert cluster.scaled == [("0", 2)]
    view = await cluster.view()
    assert [(one.name, one.target, len(one.replicas)) for one in view.pools] == [("0", 2, 1), ("1", 1, 1)]
    assert view.changes[0].took_s is None
    await cluster.tell(0, "c")
    view = await cluster.view()
    assert [one.cause for one in view.changes] == ["hot"] and view.changes[0].took_s is not None
    assert view.pools[0].capacity_pairs_per_s == 1000 and view.pools[0].pairs_per_s > 800
    assert view.pools[0].replicas[0].weight_bytes == 64


async def test_a_replica_that_leaves_is_left_out_but_for_the_last_one(cluster: Cluster) -> None:
    for pool, name in ((0, "a"), (0, "c"), (1, "b")):
        await cluster.tell(pool, name)
    first = await cluster.map()
    assert await cluster.pools.leaving("a")
    assert [one.name for one in (await cluster.map(first.version)).pools[0].replicas] == ["c"]
    assert not await cluster.pools.leaving("b")


async def test_experts_move_when_all_hold_them_and_stay_until_engines_follow(cluster: Cluster) -> None:
    await cluster.tell(0, "a")
    await cluster.tell(1, "b")
    first = await cluster.map()
    target = round_robin(LAYERS, EXPERTS, 2)
    # Experts 0 and 1 of the first layer change places.
    target[:, 0, [0, 1]] = target[:, 0, [1, 0]]
    cluster.pools._mover.begin(target, time.monotonic())
    wanted = await cluster.tell(0, "a")
    assert wanted == {0: frozenset({0, 1, 2}), 1: frozenset({0, 2})}
    assert await cluster.pools.map("trunk", "here", first.version, first.version) is None
    wide = {0: frozenset({0, 1, 2}), 1: frozenset({0, 2})}, {0: frozenset({0, 1, 3}), 1: frozenset({1, 3})}
    await cluster.tell(0, "a", holds=wide[0])
    await cluster.tell(1, "b", holds=wide[1])
    told = await cluster.map(first.version)
    assert told.pools[0].holds[0] == {1, 2} and told.pools[1].holds[0] == {0, 3}
    assert await cluster.tell(0, "a", holds=wide[0]) == wide[0], "the trunk has not said yet that it knows"
    assert await cluster.pools.map("trunk", "here", told.version, first.version) is None
    assert await cluster.tell(0, "a", holds=wide[0]) == wide[0], "the follower knows, its engine does not work by it"
    await cluster.pools.map("trunk", "here", told.version, told.version)
    await cluster.tell(0, "a", holds=wide[0])
    assert await cluster.tell(0, "a", holds=wide[0]) == {0: frozenset({1, 2}), 1: frozenset({0, 2})}
    assert (await cluster.view()).moved_pairs == 2


async def test_a_dead_pool_is_not_taken_for_a_parked_one(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balancing, "SILENT_S", 0.3)
    assert (await cluster.view()).listens
    await cluster.tell(0, "a")
    await cluster.tell(1, "b")
    first = await cluster.map()

    async def beat() -> None:
        while True:
            await cluster.tell(0, "a")
            await asyncio.sleep(0.05)

    beating = asyncio.create_task(beat())
    await until(lambda: "b" not in cluster.pools._books.known)
    assert await cluster.pools.map("trunk", "here", first.version, first.version) is None, (
        "trunks find out by themselves who is dead"
    )
    view = await cluster.view()
    assert [(one.target, len(one.replicas)) for one in view.pools] == [(1, 1), (1, 0)] and not view.listens
    await cluster.tell(1, "c")
    assert [one.name for one in (await cluster.map(first.version)).pools[1].replicas] == ["c"]
    beating.cancel()


async def test_one_that_is_started_anew_goes_on_with_what_there_is(cluster: Cluster, tmp_path: Path) -> None:
    again = Cluster()
    started(again, spec(tmp_path), {"0": 2, "1": 0})
    try:
        assert [one.target for one in (await again.view()).pools] == [2, 0]
        await again.tell(0, "a")
        told = await again.map(1)
        assert [len(pool.replicas) for pool in told.pools] == [1, 0], "the second one is parked, so this is all"
    finally:
        again.pools.stop()


async def test_one_that_is_started_anew_after_moves_takes_nothing_away(tmp_path: Path) -> None:
    again = Cluster()
    started(again, spec(tmp_path))
    moved = {0: frozenset({1, 2}), 1: frozenset({0, 2})}, {0: frozenset({0, 3, 1}), 1: frozenset({1, 3})}
    try:
        # Expert 1 of the first layer was on its way from pool 1 to pool 0.
        assert await again.tell(0, "a", holds=moved[0]) == moved[0], "nothing goes before trunks have a map of this one"
        assert await again.tell(1, "b", holds=moved[1]) == moved[1], "what is between two pools stays in both"
        told = await again.map(1)
        assert told.pools[0].holds == moved[0]
        assert told.pools[1].holds == {0: frozenset({0, 3}), 1: frozenset({1, 3})}
        assert await again.pools.map("trunk", "here", told.version, told.version) is None
        await again.tell(1, "b", holds=moved[1])
        assert await again.tell(1, "b", holds=moved[1]) == told.pools[1].holds
    finally:
        again.pools.stop()


async def test_what_serve_could_not_be_told_is_told_again(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    failing, scale = [ConnectionError(), ConnectionError()], cluster.pools._scale

    async def flaky(pool: str, count: int) -> None:
        if failing:
            raise failing.pop()
        await scale(pool, count)

    monkeypatch.setattr(cluster.pools, "_scale", flaky)
    await cluster.tell(0, "a")
    await cluster.tell(1, "b")
    cluster.pools._books.found("1", 2)
    await until(lambda: cluster.scaled == [("1", 2)])
    assert not failing


async def test_a_parked_pool_wakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = Cluster()
    monkeypatch.setattr(module, "LOOK_S", 0.02)
    started(made, spec(tmp_path, idle_s=1, dwell_s=0))
    try:

        async def beat() -> None:
            pairs = 0
            while True:
                pairs += 4
                await made.tell(0, "a", pairs=pairs)
                if ("1", 0) not in made.scaled:
                    await made.tell(1, "b")
                await asyncio.sleep(0.05)

        beating = asyncio.create_task(beat())
        await until(lambda: made.scaled == [("1", 0)])
        await made.pools.invoked("1")
        await until(lambda: made.scaled == [("1", 0), ("1", 1)])
        beating.cancel()
        assert [one.cause for one in (await made.view()).changes] == ["idle", "invoked"]
    finally:
        made.pools.stop()
