from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.experts.pools import Pool, PoolMap, Replica, parse_pool_map
from deployments.engines.protocol import EngineDeadError, EngineStartError
from deployments.experts.trunk_files import TrunkFiles
from deployments.pools.following import PoolFollower

pytestmark = pytest.mark.asyncio


def pool_map(version: int) -> str:
    replica = Replica(f"replica-{version}", f"tcp:localhost:{version}")
    return PoolMap(version, (Pool("0", (replica,), {0: frozenset({0})}),)).to_json()


class FakePools:
    """Answers with what is put into it."""

    def __init__(self) -> None:
        self.maps: asyncio.Queue[str | Exception] = asyncio.Queue()
        self.asked_with: list[int] = []
        self.woken: list[str] = []
        self.works_by = -1

    async def map(self, known: int, works_by: int) -> str | None:
        self.asked_with.append(known)
        self.works_by = works_by
        told = await self.maps.get()
        if isinstance(told, Exception):
            raise told
        return told

    async def invoked(self, pool: str) -> None:
        self.woken.append(pool)


@pytest.fixture
def files(tmp_path: Path) -> TrunkFiles:
    return TrunkFiles(tmp_path / "a.map.json", tmp_path / "secret", 1, 2, 3)


def version_of(files: TrunkFiles) -> int:
    return parse_pool_map(files.map.read_bytes()).version


async def until(condition: Callable[[], bool], within_s: float = 3.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.02)


async def test_the_map_is_there_when_it_has_started_and_follows(files: TrunkFiles) -> None:
    pools = FakePools()
    follower = PoolFollower(pools, files)
    pools.maps.put_nowait(pool_map(4))
    await follower.start(1.0)
    assert version_of(files) == 4
    pools.maps.put_nowait(pool_map(9))
    await until(lambda: version_of(files) == 9)
    await until(lambda: pools.asked_with[-1] == 9)
    await follower.close()
    assert not files.map.exists() and not files.wanted.exists()


async def test_pools_that_do_not_come_are_named(files: TrunkFiles) -> None:
    with pytest.raises(EngineStartError, match=r"not there within 0.2 s"):
        await PoolFollower(FakePools(), files).start(0.2)


async def test_failures_and_maps_that_are_none_leave_the_map_as_it_was(files: TrunkFiles) -> None:
    pools = FakePools()
    follower = PoolFollower(pools, files)
    pools.maps.put_nowait(pool_map(4))
    await follower.start(1.0)
    pools.maps.put_nowait(RuntimeError("away"))
    pools.maps.put_nowait("{}")
    await until(pools.maps.empty)
    assert version_of(files) == 4
    pools.maps.put_nowait(pool_map(5))
    await until(lambda: version_of(files) == 5)
    await follower.close()


async def test_word_of_the_engine_is_passed_on_and_a_full_disk_is_survived(files: TrunkFiles) -> None:
    pools = FakePools()
    follower = PoolFollower(pools, files)
    pools.maps.put_nowait(pool_map(4))
    await follower.start(1.0)
    files.taken.write_text("4")
    # The file cannot be written: something else is in its place.
    files.map.with_suffix(".new").mkdir()
    pools.maps.put_nowait(pool_map(5))
    await until(lambda: pools.works_by == 4)
    follower.check()
    files.map.with_suffix(".new").rmdir()
    pools.maps.put_nowait(pool_map(5))
    await until(lambda: version_of(files) == 5)
    await follower.close()
    with pytest.raises(EngineDeadError):
        follower.check()


async def test_a_parked_pool_that_tokens_wait_for_is_woken(files: TrunkFiles) -> None:
    pools = FakePools()
    follower = PoolFollower(pools, files)
    pools.maps.put_nowait(pool_map(1))
    await follower.start(1.0)
    (files.wanted / "7").touch()
    await until(lambda: pools.woken == ["7"])
    assert not list(files.wanted.iterdir())
    await follower.close()
