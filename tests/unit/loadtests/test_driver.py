from __future__ import annotations

import socket

import pytest

from loadtests.driver import LoadPlan, drive
from loadtests.targets import parse_target
from tests.unit.loadtests.sse_server import Behaviour, serving


def plan(url: str, **changes: object) -> LoadPlan:
    settings: dict[str, object] = {"streams": 2, "requests": 6, "max_tokens": 5, "warm_up": 0, "request_timeout_s": 2.0}
    return LoadPlan(target=parse_target(url), model="dense", **(settings | changes))  # type: ignore[arg-type]


async def test_counts_requests_tokens_and_gaps() -> None:
    behaviour = Behaviour(gap_s=0.004)
    async with serving(behaviour) as url:
        summary = await drive(plan(url))
    assert summary.requests == summary.succeeded == 6
    assert summary.errors == {}
    assert summary.completion_tokens == 30
    assert summary.prompt_tokens == 42
    assert summary.finish_reasons == {"length": 6}
    assert summary.gap.p50 is not None
    assert 0.003 < summary.gap.p50 < 0.03
    assert summary.ttft.p50 is not None
    assert 0.003 < summary.ttft.p50 < 0.1
    assert summary.few_token_share == 1.0
    assert summary.exact_share == 1.0
    assert summary.tokens_per_s == pytest.approx(30 / summary.window_s)


async def test_tokens_that_arrive_together_share_one_arrival() -> None:
    async with serving(Behaviour(gap_s=0.01, per_read=5)) as url:
        summary = await drive(plan(url, max_tokens=10, streams=1, requests=2))
    assert summary.few_token_share == 0.0
    assert summary.itl.p50 == 0.0
    assert summary.gap.p50 is not None
    assert summary.gap.p50 > 0.008


async def test_warm_up_is_sent_but_not_counted() -> None:
    behaviour = Behaviour()
    async with serving(behaviour) as url:
        summary = await drive(plan(url, warm_up=3, requests=4))
    assert summary.requests == 4
    assert [body["max_tokens"] for body in behaviour.bodies] == [8, 8, 8, 5, 5, 5, 5]


async def test_same_seed_sends_the_same_prompts() -> None:
    first, second, third = Behaviour(), Behaviour(), Behaviour()
    for behaviour, seed in ((first, 4), (second, 4), (third, 5)):
        async with serving(behaviour) as url:
            await drive(plan(url, seed=seed, streams=1))
    assert first.bodies == second.bodies
    assert not {str(body) for body in first.bodies} & {str(body) for body in third.bodies}


async def test_key_goes_into_the_header_and_no_extra_goes_into_the_body() -> None:
    behaviour = Behaviour()
    async with serving(behaviour) as url:
        await drive(LoadPlan(parse_target(url, "sk-made-up"), "dense", streams=1, requests=1, warm_up=0))
    assert "authorization: Bearer sk-made-up" in behaviour.headers[0]
    assert set(behaviour.bodies[0]) == {"model", "messages", "max_tokens", "temperature", "stream", "stream_options"}


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        (Behaviour(status=429), "http_429"),
        (Behaviour(stop_after=2), "closed"),
        (Behaviour(error_event_after=2), "stream_error"),
        (Behaviour(finish=False), "no_done"),
        (Behaviour(gap_s=1.0), "timeout"),
    ],
)
async def test_failures_are_counted_by_kind(behaviour: Behaviour, error: str) -> None:
    async with serving(behaviour) as url:
        summary = await drive(plan(url, requests=2, request_timeout_s=0.2))
    assert summary.errors == {error: 2}
    assert summary.succeeded == 0
    assert summary.tokens_per_s == 0.0


async def test_a_server_that_is_not_there_is_a_connect_error() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    summary = await drive(plan(f"http://127.0.0.1:{port}", requests=2))
    assert summary.errors == {"connect": 2}


async def test_time_limit_ends_a_run() -> None:
    async with serving(Behaviour(gap_s=0.01)) as url:
        summary = await drive(plan(url, requests=10_000, seconds=0.2))
    assert 1 < summary.requests < 40


@pytest.mark.parametrize("change", [{"streams": 0}, {"requests": 10**9}, {"seconds": 1e9}, {"max_tokens": 0}])
def test_unbounded_plans_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        plan("http://127.0.0.1:1", **change)
