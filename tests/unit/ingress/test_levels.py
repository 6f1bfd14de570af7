"""What requests meet at a level of their model's precision ladder: in the answer, at the model, and at its twin."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from cluster.config.cluster import ClusterConfig
from deployments.channel.messages import Hello, LadderPosition
from deployments.channel.receiver import AttachedReplica
from deployments.engines.protocol import EngineStats
from tests.unit.ingress.bare_ingress import BareIngress, bare_ingress
from tests.unit.ingress.ladders import CHAT, Connected, config

MEASURES = ("conservative_sampling", "fp8_kv", "twin", "shed")


def at_level(ingress: BareIngress, level: int, model: str = "big") -> None:
    """Put the model's replica at a level."""
    hello = Hello("s", f"at-{model}", model, "simulated", 1, (), "int8", ("auto", "fp8"))
    replica = AttachedReplica(hello, cast("asyncio.StreamWriter", Connected()), asyncio.get_running_loop().time())
    replica.position = LadderPosition(level, measures=MEASURES[:level])
    ingress.services.channel._replicas[f"at-{model}"] = replica


def chat(model: str = "big", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}


@pytest.mark.parametrize("level", [0, 1, 2, 3, 4])
async def test_answers_name_the_level_and_what_it_changed(tmp_path: Path, level: int) -> None:
    async with bare_ingress(config(), tmp_path) as ingress:
        at_level(ingress, level)
        reply = await ingress.post(CHAT, chat(pointsman={"business_critical": False}, temperature=0.8))
        assert reply.status == 200
        told = json.loads(reply.body)["pointsman"]
        if level >= 3:
            assert reply.headers["x-pointsman-model"] == told["model"] == "small"
            assert told["level"] == {"number": level, "name": MEASURES[level - 1], "changed": []}
            assert "short of KV memory" in told["reason"]
            assert told["rule"].endswith("_twin")
            return
        names = ["normal", "conservative_sampling", "fp8_kv"]
        assert reply.headers["x-pointsman-level"] == f"{level} {names[level]}"
        sent = ingress.clients["big"].calls[0].request.body
        if level:
            assert told["level"]["changed"] == ["temperature 0.8 -> 0.3", "top_p open -> 0.9"]
            assert reply.headers["x-pointsman-changed"] == "temperature 0.8 -> 0.3; top_p open -> 0.9"
            assert (sent["temperature"], sent["top_p"]) == (0.3, 0.9)
        else:
            assert "x-pointsman-changed" not in reply.headers
            assert sent["temperature"] == 0.8
            assert "top_p" not in sent


async def test_business_critical_requests_stay_as_they_are_at_every_level(tmp_path: Path) -> None:
    async with bare_ingress(config(), tmp_path) as ingress:
        at_level(ingress, 4)
        critical = {"business_critical": True, "latency_class": "batch"}
        reply = await ingress.post(CHAT, chat(pointsman=critical, max_tokens=300))
        assert reply.status == 200
        assert reply.headers["x-pointsman-model"] == "big"
        assert "x-pointsman-changed" not in reply.headers
        assert ingress.clients["big"].calls[0].request.body["max_tokens"] == 300


async def test_best_effort_requests_are_cut_short_then_shed(tmp_path: Path) -> None:
    async with bare_ingress(config(max_completion_tokens=64), tmp_path) as ingress:
        at_level(ingress, 2)
        batch = {"latency_class": "batch"}
        reply = await ingress.post(CHAT, chat(pointsman=batch, max_tokens=300, temperature=0))
        assert reply.headers["x-pointsman-changed"] == "max_tokens 300 -> 64"
        assert ingress.clients["big"].calls[0].request.body["max_tokens"] == 64
        at_level(ingress, 4)
        # The twin takes them as long as it can.
        assert (await ingress.post(CHAT, chat(pointsman=batch))).headers["x-pointsman-model"] == "small"
        ingress.clients["small"].up = False
        refused = await ingress.post(CHAT, chat(pointsman=batch))
        assert (refused.status, refused.error["code"], refused.headers["retry-after"]) == (503, "shed", "10")
        assert "latency_class" in refused.error["message"]
        assert (await ingress.post(CHAT, chat())).status == 200


async def test_a_twin_that_the_caller_does_not_allow_takes_nothing(tmp_path: Path) -> None:
    async with bare_ingress(config(), tmp_path) as ingress:
        at_level(ingress, 3)
        reply = await ingress.post(CHAT, chat("auto", pointsman={"allowed_models": ["big"]}))
        assert reply.headers["x-pointsman-model"] == "big"


async def test_a_twin_that_holds_less_than_was_asked_for_takes_nothing(tmp_path: Path) -> None:
    document = config().model_dump()
    document["models"]["small"]["engine"]["max_model_len"] = 32
    async with bare_ingress(ClusterConfig.model_validate(document), tmp_path) as ingress:
        at_level(ingress, 3)
        reply = await ingress.post(CHAT, chat(max_tokens=200))
        assert reply.headers["x-pointsman-model"] == "big"


async def test_the_route_page_tells_of_the_twin(tmp_path: Path) -> None:
    async with bare_ingress(config(), tmp_path) as ingress:
        at_level(ingress, 3)
        reply = await ingress.post("/v1/route", chat())
        assert reply.status == 200
        assert b'"small"' in reply.body


async def test_the_page_of_levels(tmp_path: Path) -> None:
    async with bare_ingress(config(), tmp_path) as ingress:
        at_level(ingress, 2)
        ingress.services.precision.follow(ingress.services.config)
        ingress.services.channel._replicas["at-big"].stats = EngineStats(kv_blocks=20, kv_block_tokens=16, kv_usage=0.5)
        told = json.loads((await ingress.request("GET", "/v1/precision")).body)
        assert told["levels"] == ["normal", "conservative_sampling", "fp8_kv", "twin", "shed"]
        (replica,) = told["models"]["big"]["replicas"]
        assert (replica["level"], replica["level_name"], replica["kv_blocks"]) == (2, "fp8_kv", 20)
        assert told["models"]["big"]["kv_quality"]["fp8"]["agreement"] == 0.99
        assert "small" not in told["models"]


async def test_a_twin_takes_over_the_contract_of_the_model(tmp_path: Path) -> None:
    document = config().model_dump()
    document["contracts"] = {
        "strong": {"max_prompt_tokens": 200, "max_completion_tokens": 64, "sampling": "deterministic", "timeout_s": 30},
        "little": {"max_prompt_tokens": 200, "max_completion_tokens": 300, "timeout_s": 90},
    }
    async with bare_ingress(ClusterConfig.model_validate(document), tmp_path) as ingress:
        at_level(ingress, 3)
        reply = await ingress.post(CHAT, chat())
        assert reply.headers["x-pointsman-model"] == "small"
        sent = ingress.clients["small"].calls[0].request
        assert (sent.body["temperature"], sent.body["max_tokens"], sent.max_prompt_tokens) == (0.0, 64, 200)
        for asked in ({"max_tokens": 400}, {"temperature": 1.5}):
            assert (await ingress.post(CHAT, chat(**asked))).status == 400


async def test_a_twin_that_cannot_call_tools_is_not_asked_to(tmp_path: Path) -> None:
    document = config().model_dump()
    for name, parser in (("big", "hermes"), ("small", None)):
        document["models"][name]["engine"] |= {"type": "vllm", "tool_parser": parser, "simulated": None}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    async with bare_ingress(ClusterConfig.model_validate(document), tmp_path) as ingress:
        at_level(ingress, 3)
        assert (await ingress.post(CHAT, chat())).headers["x-pointsman-model"] == "small"
        assert (await ingress.post(CHAT, chat(tools=[tool]))).headers["x-pointsman-model"] == "big"


async def test_another_model_of_the_role_takes_what_one_turns_away(tmp_path: Path) -> None:
    document = config().model_dump()
    document["models"]["other"] = document["models"]["small"] | {"roles": ["strong"]}
    batch = {"latency_class": "batch"}
    async with bare_ingress(ClusterConfig.model_validate(document), tmp_path) as ingress:
        chosen = (await ingress.post(CHAT, chat("strong"))).headers["x-pointsman-model"]
        at_level(ingress, 4, chosen)
        reply = await ingress.post(CHAT, chat("strong", pointsman=batch))
        assert reply.status == 200
        assert {chosen, reply.headers["x-pointsman-model"]} == {"big", "other"}
        assert "short of KV memory" in reply.headers["x-pointsman-reason"]


async def test_what_the_engine_samples_with_by_itself_is_not_raised(tmp_path: Path) -> None:
    async with bare_ingress(config(), tmp_path) as ingress:
        at_level(ingress, 1)
        replica = ingress.services.channel._replicas["at-big"]
        replica.hello = msgspec.structs.replace(replica.hello, temperature=0.2, top_p=0.8)
        reply = await ingress.post(CHAT, chat())
        assert "x-pointsman-changed" not in reply.headers
        assert "temperature" not in ingress.clients["big"].calls[0].request.body
