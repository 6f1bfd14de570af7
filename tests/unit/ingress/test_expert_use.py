"""What answers and the page tell of experts, and what engines are asked."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster.experts.load import ExpertUse
from deployments.channel.stream import TokenStream
from deployments.engines.protocol import EngineReply, TokenUsage
from deployments.replica.spec import ReplicaCall
from tests.unit.ingress.bare_ingress import EVENT, BareIngress, Behaviour, Reply, bare_ingress
from tests.unit.ingress.sparse_models import config, counts, join, load, use

CHAT = "/v1/chat/completions"


def chat(model: str = "moe", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Write a function in Python."}], **more}


def telling(experts: ExpertUse | None, blockers: tuple[str, ...] = ()) -> Behaviour:
    """A replica whose engine tells which experts a request used."""

    def answer(stream: TokenStream, call: ReplicaCall) -> None:
        assert stream.replica is not None
        stream.replica.hello = msgspec.structs.replace(stream.replica.hello, expert_blockers=blockers)
        streams = call.request.body.get("stream")
        if streams:
            stream.feed(EVENT * 2)
        told = experts if call.request.log_experts or experts is None else replace(experts, logs=())
        body = b"" if streams else json.dumps({"choices": [{"index": 0}]}).encode()
        stream.finish(EngineReply(200, body, TokenUsage(7, 2), "stop", experts=told))

    return answer


def told_by(reply: Reply) -> dict[str, Any]:
    """The `pointsman` object of a body or a stream."""
    found: dict[str, Any]
    if reply.body.startswith(b"{"):
        found = json.loads(reply.body)["pointsman"]
    else:
        (line,) = [line for line in reply.body.split(b"\n") if line.startswith(b": pointsman ")]
        found = json.loads(line.removeprefix(b": pointsman "))
    return found


async def posted(ingress: BareIngress, behaviour: Behaviour, **body: Any) -> Reply:
    for client in ingress.clients.values():
        client.behaviour = behaviour
    return await ingress.post(CHAT, chat(**body))


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_tells_all_only_if_it_is_asked(tmp_path: Path, stream: bool) -> None:
    async with bare_ingress(config(), tmp_path) as ingress:
        behaviour = telling(use((0, 1, 3), tokens=(11, 12)))
        short = told_by(await posted(ingress, behaviour, stream=stream))["experts"]
        assert short == {"tokens": 3, "distinct": 8, "entropy": pytest.approx(0.916, abs=0.001)}
        full = told_by(await posted(ingress, behaviour, stream=stream, pointsman={"experts": True}))["experts"]
        assert (full["layers"], full["experts"], full["top_k"]) == (2, 4, 2)
        assert full["top"][0] == [0, 1, 1.3333]
        assert full["logs"] == [{"tokens": [11, 12], "experts": [[[0, 1], [0, 1]]] * 2, "left_out": 3}]
        assert {name: full[name] for name in short} == short
        first, second = ingress.clients["moe"].calls
        assert (first.request.log_experts, second.request.log_experts) == (0, 512)
        assert first.request.traffic == second.request.traffic == "code"


async def test_judged_answers_tell_it_too(tmp_path: Path) -> None:
    async with bare_ingress(config(), tmp_path) as ingress:
        knobs = {"experts": True, "verify": {"regex": ".*"}}
        reply = await posted(ingress, telling(use(tokens=(1,))), pointsman=knobs)
        assert reply.status == 200
        assert len(told_by(reply)["experts"]["logs"]) == 1


@pytest.mark.parametrize(
    ("blockers", "reason"),
    [
        (("CUDA graphs", "a compiled model"), "CUDA graphs; a compiled model"),
        ((), "the engine told nothing of this request"),
    ],
)
async def test_a_model_that_does_not_tell_says_why_if_it_is_asked(
    tmp_path: Path, blockers: tuple[str, ...], reason: str
) -> None:
    async with bare_ingress(config(), tmp_path) as ingress:
        behaviour = telling(None, blockers)
        assert "experts" not in told_by(await posted(ingress, behaviour))
        assert "experts" not in told_by(await posted(ingress, behaviour, pointsman={"experts": False}))
        told = told_by(await posted(ingress, behaviour, pointsman={"experts": True}))
        assert told["experts"] == {"unavailable": reason}


async def test_a_log_that_is_turned_off_is_refused(tmp_path: Path) -> None:
    async with bare_ingress(config(log_tokens=0), tmp_path) as ingress:
        refused = await posted(ingress, telling(use()), pointsman={"experts": True})
        assert refused.status == 400
        assert refused.error["param"] == "pointsman.experts"
        assert "the operator of this cluster has turned the log of experts off" in refused.error["message"]
        assert (await posted(ingress, telling(use()), pointsman={"experts": False})).status == 200
        assert (await posted(ingress, telling(use()), pointsman={"experts": "yes"})).status == 400


async def test_a_request_is_in_the_tail_table_once_it_has_ended(tmp_path: Path) -> None:
    async with bare_ingress(config(), tmp_path) as ingress:
        await posted(ingress, telling(use()))
        page = json.loads((await ingress.request("GET", "/v1/experts")).body)
        # Without a heat there is no place to show it yet.
        assert page["models"] == {}
        table = ingress.services.experts.tail("moe")
        assert table is not None
        assert [row.requests for row in table.rows] == [0, 0, 0, 0, 1]
        join(ingress.services.channel, "r1").load = load(counts())
        await ingress.services.experts.look(asyncio.get_running_loop().time())
        page = json.loads((await ingress.request("GET", "/v1/experts")).body)
        assert page["models"]["moe"]["tail"]["requests"] == 1


async def test_the_page_tells_of_models_that_tell_and_why_others_do_not(tmp_path: Path) -> None:
    async with bare_ingress(config(), tmp_path) as ingress:
        services = ingress.services
        moe, _ = join(services.channel, "r1"), join(services.channel, "r2", "mute", ("a compiled model",))
        now = asyncio.get_running_loop().time()
        moe.load = load(counts())
        await services.experts.look(now - 9)
        moe.load = load(counts((1, 3, 300), even=100), code=counts((1, 3, 300)))
        for ago in (8, 5):
            await services.experts.look(now - ago)
        await posted(ingress, telling(use()))
        reply = await ingress.request("GET", "/v1/experts")
        page = json.loads(reply.body)
        assert reply.status == 200
        assert page["silent"] == {"mute": ["a compiled model"]}
        assert (page["half_life_s"], page["log_tokens"]) == (10, 512)
        told = page["models"]["moe"]
        assert told["shape"] == {"layers": 2, "experts": 4, "top_k": 2}
        assert told["shares"] == [[0.25] * 4, [0.14286, 0.14286, 0.14286, 0.57143]]
        assert told["imbalance"] == [1.0, 2.28571]
        assert told["traffic"]["code"] == [[0.0] * 4, [0.0, 0.0, 0.0, 1.0]]
        assert told["replicas"] == [{"id": "r1", "tokens": 350}]
        (hot,) = told["hot"]
        assert (hot["layer"], hot["expert"], hot["times"]) == (1, 3, 2.29)
        assert hot["age_s"] == pytest.approx(5, abs=1)
        assert hot["traffic"] == [{"name": "code", "share": 1.0}]
        assert told["tail"]["requests"] == 1
        assert told["tail"]["rows"][-1]["name"] == "le_1"


async def test_the_page_of_a_sparse_model_without_replicas(tmp_path: Path) -> None:
    async with bare_ingress(config(), tmp_path) as ingress:
        join(ingress.services.channel, "r1")
        page = json.loads((await ingress.request("GET", "/v1/experts")).body)
        assert page["silent"] == {
            "moe": ["no replica has told of its experts yet"],
            "mute": ["no replica of it is attached"],
        }
