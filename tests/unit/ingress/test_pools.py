"""The ingress follows how expert pools stand, tells of it, and counts what requests had of them."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.experts.pool_use import PoolUse
from deployments.channel.stream import TokenStream
from deployments.engines.protocol import EngineReply, TokenUsage
from deployments.ingress.dispatch import ModelClient
from deployments.ingress.pools import STALE_S, PoolsControl
from deployments.replica.spec import ReplicaCall
from deployments.telemetry.metrics import IngressMetrics
from tests.unit.ingress.bare_ingress import EVENT, Behaviour, bare_ingress
from tests.unit.ingress.pool_models import Pools, change, config, pool, use, view
from tests.unit.ingress.sparse_models import counts, join, load

CHAT = "/v1/chat/completions"
LABELS = ("model", "pool", "cause")


class World:
    """A control whose questions a test asks itself, and whose clock it sets."""

    def __init__(self, pools: Pools, *with_pools: str) -> None:
        self.pools = pools
        self.now_s = 100.0
        self.clients = {
            name: cast("ModelClient", SimpleNamespace(application=f"model-{name}")) for name in ("big", "moe", "other")
        }
        made = config(*(with_pools or ("moe",)))
        self.metrics = IngressMetrics("ingress", made.models)
        self.control = PoolsControl(made, self.clients, self.metrics, pools.asking, clock=lambda: self.now_s)

    def samples(self, name: str) -> dict[tuple[str, ...], float]:
        """A metric's series by the values of their labels."""
        families = text_string_to_metric_families(self.metrics.render().decode())
        return {
            tuple(sample.labels[label] for label in LABELS if label in sample.labels): sample.value
            for family in families
            for sample in family.samples
            if sample.name == f"pointsman_expert_{name}"
        }


async def test_only_models_with_pools_are_asked_about() -> None:
    here = World(Pools(moe=view(pool("a", 1, 1))))
    before = here.control.standing("moe")
    assert before is not None
    assert (before.view, before.failed, before.stale) == (None, "", False)
    await here.control.look()
    assert here.pools.asked == ["model-moe"]
    told = here.control.standing("moe")
    assert told is not None
    assert told.view == view(pool("a", 1, 1))
    assert here.control.standing("big") is here.control.standing("other") is here.control.standing("gone") is None


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (RuntimeError("boom"), "asking failed: RuntimeError"),
        (asyncio.CancelledError(), "the question was cancelled"),
        (b"{", "what they tell cannot be read: "),
        (b'{"version": "x"}', "what they tell cannot be read: "),
    ],
)
async def test_a_question_without_an_answer_keeps_the_last_one_and_is_logged_once(
    told: object, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    here = World(Pools(moe=view(pool("a", 1, 1)), other=told), "moe", "other")
    await here.control.look()
    here.pools.tells["model-moe"] = told
    here.now_s += 4
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await here.control.look()
    known, never = here.control.standing("moe"), here.control.standing("other")
    assert known is not None and never is not None
    assert known.view == view(pool("a", 1, 1))
    assert (known.age_s, known.stale) == (4, False)
    assert known.failed.startswith(why)
    assert never.view is None and never.failed.startswith(why)
    assert sum("moe" in getattr(record, "model", "") for record in caplog.records) == 1
    here.now_s += 7
    stale = here.control.standing("moe")
    assert stale is not None and stale.stale
    here.pools.tells["model-moe"] = view()
    await here.control.look()
    again = here.control.standing("moe")
    assert again is not None
    assert (again.view, again.age_s, again.failed) == (view(), 0, "")


async def test_one_that_hangs_neither_stops_the_questions_nor_holds_up_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deployments.ingress.pools.LIMIT_S", 0.05)
    monkeypatch.setattr("deployments.ingress.pools.ASK_S", 0.01)
    left = []

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            left.append(1)
            raise

    here = World(Pools(moe=hang, other=view(pool("b", 1, 1))), "moe", "other")
    here.control.start()
    async with asyncio.timeout(5):
        while len(left) < 2:
            await asyncio.sleep(0.01)
    hung, fine = here.control.standing("moe"), here.control.standing("other")
    assert hung is not None and fine is not None
    assert hung.failed == "no answer within 0.05 s"
    assert fine.view is not None
    here.control.stop()
    await asyncio.sleep(0.02)
    asked = len(here.pools.asked)
    await asyncio.sleep(0.1)
    assert len(here.pools.asked) == asked


async def test_another_config_and_another_application() -> None:
    here = World(Pools(moe=view(pool("a", 1, 1)), other=view(pool("b", 1, 1))), "moe", "other")
    await here.control.look()
    here.control.follow(config("moe"), here.clients)
    assert here.control.standing("other") is None
    kept = here.control.standing("moe")
    assert kept is not None and kept.view is not None
    # The model's replicas were replaced, and with them its pools.
    here.clients["moe"].application = "model-moe~2"
    replaced = here.control.standing("moe")
    assert replaced is not None and replaced.view is None
    here.pools.tells["model-moe~2"] = view(pool("new", 1, 1))
    await here.control.look()
    assert here.pools.asked[-1] == "model-moe~2"
    now = here.control.standing("moe")
    assert now is not None and now.view == view(pool("new", 1, 1))


async def test_a_model_is_impaired_while_a_pool_that_should_have_replicas_has_none() -> None:
    here = World(Pools(moe=view(pool("a", 1, 1), pool("parked", 0, 0))))
    assert here.control.impairment("moe") == "", "nothing is known yet"
    await here.control.look()
    assert here.control.impairment("moe") == ""
    here.pools.tells["model-moe"] = view(pool("a", 1, 0), pool("b", 2, 0))
    await here.control.look()
    assert here.control.impairment("moe") == "pools a, b of its experts has no replica that answers"
    here.pools.tells["model-moe"] = replace(view(pool("a", 1, 0)), listens=True)
    await here.control.look()
    assert here.control.impairment("moe") == "", "who tells has not heard of all pools yet"
    here.pools.tells["model-moe"] = view(pool("a", 1, 0))
    await here.control.look()
    assert here.control.impairment("moe")
    here.now_s += STALE_S + 1
    assert here.control.impairment("moe") == "", "what is old is not gone by"
    assert here.control.impairment("dense") == ""


async def test_metrics_of_pools() -> None:
    here = World(Pools(moe=view(pool("a", 3, 2, 830.0), pool("parked", 0, 0), pool("gone", 1, 0, 7.0))))
    await here.control.look()
    assert here.samples("pool_replicas_wanted") == {("moe", "a"): 3, ("moe", "parked"): 0, ("moe", "gone"): 1}
    assert here.samples("pool_replicas") == {("moe", "a"): 2, ("moe", "parked"): 0, ("moe", "gone"): 0}
    assert here.samples("pool_pairs_per_second")["moe", "a"] == 830
    # Nothing can be said of what nobody answers for.
    assert here.samples("pool_load_ratio") == {("moe", "a"): pytest.approx(0.83)}
    assert here.samples("pool_weight_bytes")["moe", "a"] == 2000
    assert here.samples("pool_overhead_bytes")["moe", "a"] == 600
    here.now_s += 10.5
    assert here.samples("pool_replicas") == {}


async def test_series_are_bounded() -> None:
    many = [pool(f"p{number}", 1, 1, 100.0) for number in range(200)]
    here = World(Pools(moe=view(*many), other=view(*many)), "moe", "other")
    await here.control.look()
    told = here.samples("pool_replicas")
    assert len(told) == 257
    assert told["other", "other"] == 144
    assert here.samples("pool_load_ratio")["other", "other"] == pytest.approx(0.2)


async def test_changes_count_once_and_only_since_the_ingress_began() -> None:
    now = time.time()
    old, first = change("cold", now - 50), change("hot", now + 1)
    here = World(Pools(moe=view(changes=(old, first))))
    await here.control.look()
    assert here.samples("pool_changes_total") == {("moe", "hot"): 1}
    later = change("hot", now + 2), change("hot", now + 2, "b"), change("made up", now + 3)
    # Until trunks are told, a change is told without the time that this took.
    here.pools.tells["model-moe"] = view(changes=(old, change("hot", now + 1, took_s=4.0), *later))
    for _ in range(3):
        await here.control.look()
    assert here.samples("pool_changes_total") == {("moe", "hot"): 3, ("moe", "other"): 1}


async def test_what_answers_had_of_pools_is_counted() -> None:
    here = World(Pools())
    for model, pools in (("moe", use(degraded_rows=3, resent_rows=2)), ("moe", use()), ("big", None), ("gone", use())):
        here.control.answered(model, EngineReply(200, pools=pools))
    assert here.samples("rows_degraded_total") == {("moe",): 3}
    assert here.samples("rows_resent_total") == {("moe",): 2}
    assert here.samples("pool_wait_seconds_total") == {("moe",): 0.5}
    less = config()
    less.models.pop("moe")
    here.control.follow(less, here.clients)
    assert here.samples("rows_degraded_total") == {}


def using(pools: PoolUse | None) -> Behaviour:
    """A replica whose engine had this of pools."""

    def answer(stream: TokenStream, call: ReplicaCall) -> None:
        streams = call.request.body.get("stream")
        if streams:
            stream.feed(EVENT * 2)
        body = b"" if streams else json.dumps({"choices": [{"index": 0}]}).encode()
        stream.finish(EngineReply(200, body, TokenUsage(7, 2), "stop", pools=pools))

    return answer


async def told_of(tmp_path: Path, pools: PoolUse | None, **more: Any) -> tuple[dict[str, Any], dict[str, str], str]:
    """The `pointsman` object, the headers and the metrics after a request whose engine had this of pools."""
    async with bare_ingress(config("moe"), tmp_path) as ingress:
        ingress.clients["moe"].behaviour = using(pools)
        body = {"model": "moe", "messages": [{"role": "user", "content": "Hello"}], **more}
        reply = await ingress.post(CHAT, body)
        assert reply.status == 200
        if more.get("stream"):
            (line,) = [line for line in reply.body.split(b"\n") if line.startswith(b": pointsman ")]
            told = json.loads(line.removeprefix(b": pointsman "))
        else:
            told = json.loads(reply.body)["pointsman"]
        return told, reply.headers, ingress.services.metrics.render().decode()


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_says_what_pools_did(tmp_path: Path, stream: bool) -> None:
    told, headers, metrics = await told_of(tmp_path, use(resent_rows=4), stream=stream)
    assert told["experts"] == {"pools": {"wait_s": 0.25, "resent_rows": 4, "degraded_rows": 0, "degraded": False}}
    assert "x-pointsman-degraded" not in headers
    assert 'pointsman_expert_rows_resent_total{model="moe"} 4.0' in metrics


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_says_that_other_experts_stood_in(tmp_path: Path, stream: bool) -> None:
    told, headers, metrics = await told_of(tmp_path, use(degraded_rows=3), stream=stream)
    pools = told["experts"]["pools"]
    assert (pools["degraded"], pools["degraded_rows"]) == (True, 3)
    assert "the next best ones stood in for them, 3 times" in pools["degraded_reason"]
    # A stream's head is out before this is known.
    assert headers.get("x-pointsman-degraded") == (None if stream else "experts")
    assert 'pointsman_expert_rows_degraded_total{model="moe"} 3.0' in metrics


async def test_it_stands_beside_what_is_told_of_experts_and_why_they_are_not_told_of(tmp_path: Path) -> None:
    told, _, _ = await told_of(tmp_path, use(degraded_rows=1), pointsman={"experts": True})
    assert told["experts"]["unavailable"] == "the engine told nothing of this request"
    assert "stood in for them, once (" in told["experts"]["pools"]["degraded_reason"]
    none, _, _ = await told_of(tmp_path, None)
    assert "experts" not in none


async def test_the_page_tells_how_pools_stand(tmp_path: Path) -> None:
    standing = view(pool("a", 2, 1, 20.0), pool("parked", 0, 0), changes=(change("hot", time.time() - 5),))
    pools = Pools(moe=standing)
    async with bare_ingress(config("moe"), tmp_path, pools.asking) as ingress:

        async def page() -> dict[str, Any]:
            found: dict[str, Any] = json.loads((await ingress.request("GET", "/v1/experts")).body)
            return found

        first = await page()
        assert set(first["silent"]) == {"moe", "other"}
        assert first["silent_pools"] == {"moe": {"unavailable": "the pools have not told how they stand yet"}}
        await ingress.services.pools.look()
        told = (await page())["silent_pools"]["moe"]
        assert msgspec.convert(told, type(standing)) == standing
        assert (told["stale"], told["failed"]) == (False, None)
        assert told["age_s"] < 5
        assert told["now_s"] == pytest.approx(time.time(), abs=60)
        # Once there is a heat, they stand beside it.
        for name in ("moe", "other"):
            join(ingress.services.channel, name, name).load = load(counts())
        await ingress.services.experts.look(asyncio.get_running_loop().time())
        now = await page()
        assert now["models"]["moe"]["pools"]["pools"] == told["pools"]
        assert now["models"]["other"]["pools"] is None
        assert now["silent_pools"] == {}
        pools.tells["model-moe"] = RuntimeError()
        await ingress.services.pools.look()
        assert (await page())["models"]["moe"]["pools"]["failed"] == "asking failed: RuntimeError"


async def test_no_page_waits_for_pools_that_do_not_answer(tmp_path: Path) -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    async with bare_ingress(config("moe"), tmp_path, Pools(moe=hang).asking) as ingress:
        ingress.services.pools.start()
        await asyncio.sleep(0.01)
        async with asyncio.timeout(1):
            assert (await ingress.request("GET", "/v1/experts")).status == 200
            assert (
                await ingress.post(CHAT, {"model": "moe", "messages": [{"role": "user", "content": "Hi"}]})
            ).status == 200
        ingress.services.pools.stop()
