from __future__ import annotations

import asyncio
import secrets

import pytest

from cluster.api.errors import ApiError
from cluster.keys import KeyLimits, KeyRecord, mint
from deployments.access.limiter import KeyLimiter


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def key(**limits: int) -> KeyRecord:
    return mint("k", 0.0, secrets.token_bytes, limits=KeyLimits(**limits)).record


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> KeyLimiter:
    return KeyLimiter(clock)


async def use(
    limiter: KeyLimiter, record: KeyRecord | None, reserved: int = 0, used: int | None = None
) -> dict[str, str]:
    async with limiter.admit(record, reserved) as admission:
        admission.used = used
        return dict(admission.headers)


async def test_without_limits_nothing_is_held(limiter: KeyLimiter) -> None:
    assert await use(limiter, None, 10) == {}
    assert await use(limiter, key(), 10) == {}
    assert limiter.keys == 0


async def test_requests_per_minute(limiter: KeyLimiter, clock: Clock) -> None:
    record = key(requests_per_minute=2)
    assert (await use(limiter, record))["x-ratelimit-remaining-requests"] == "1"
    await use(limiter, record)
    with pytest.raises(ApiError) as refused:
        await use(limiter, record)
    assert refused.value.status == 429
    assert 0 < int(refused.value.headers["retry-after"]) <= 61
    assert refused.value.headers["x-ratelimit-limit-requests"] == "2"
    await use(limiter, key(requests_per_minute=1))
    clock.now += 61
    await use(limiter, record)


async def test_tokens_are_charged_as_used(limiter: KeyLimiter, clock: Clock) -> None:
    record = key(tokens_per_minute=100)
    await use(limiter, record, reserved=90, used=10)
    headers = await use(limiter, record, reserved=50, used=80)
    assert headers["x-ratelimit-remaining-tokens"] == "40"
    with pytest.raises(ApiError):
        await use(limiter, record, reserved=20)


async def test_who_never_says_what_it_used_is_charged_what_it_reserved(limiter: KeyLimiter) -> None:
    record = key(tokens_per_minute=100)
    with pytest.raises(RuntimeError):
        async with limiter.admit(record, 70):
            raise RuntimeError("the client went away")
    with pytest.raises(ApiError):
        await use(limiter, record, reserved=40)


async def test_places_are_freed_however_a_request_ends(limiter: KeyLimiter) -> None:
    record = key(concurrency=2)
    release = asyncio.Event()

    async def hold() -> None:
        async with limiter.admit(record, 1):
            await release.wait()

    holders = [asyncio.create_task(hold()) for _ in range(2)]
    await asyncio.sleep(0)
    assert limiter.running(record.id) == 2
    with pytest.raises(ApiError, match="2 requests at once"):
        await use(limiter, record)
    holders[0].cancel()
    await asyncio.gather(holders[0], return_exceptions=True)
    assert limiter.running(record.id) == 1
    await use(limiter, record)
    release.set()
    await holders[1]
    assert limiter.running(record.id) == 0


async def test_state_is_bounded_and_requests_in_flight_are_kept(clock: Clock) -> None:
    limiter = KeyLimiter(clock, max_keys=8)
    busy = key(concurrency=1)
    async with limiter.admit(busy, 0):
        for _ in range(50):
            await use(limiter, key(requests_per_minute=5))
            assert limiter.keys <= 8
        with pytest.raises(ApiError):
            await use(limiter, busy)
