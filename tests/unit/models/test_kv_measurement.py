"""The measurement against an engine that is a table: what it asks, in which order, and what it refuses to tell."""

from __future__ import annotations

import json
import math
from typing import Any, cast

import pytest

from deployments.engines.kv_precision import FixedKvPrecision, KvPrecisionError, KvSwitch
from deployments.engines.protocol import Emit, Endpoint, Engine, EngineReply, EngineRequest, EngineStats
from deployments.models.kv_measurement import TOP, FixedPrecisionError, QualityError, measure
from deployments.models.kv_prompts import Prompt

PROMPTS = [Prompt("chat", (1, 2, 3)), Prompt("code", (4, 5)), Prompt("prose", (6, 7, 8, 9))]
ANSWER = [10, 11]


class TableEngine:
    """Sure of token 10 by `sure`, which depends on the precision; answers with another text at fp8 to prompt 4, 5."""

    kv_precisions: tuple[str, ...] = ("auto", "fp8")
    kv_blockers: tuple[str, ...] = ()

    def __init__(self, sure: dict[str, float], drift: float = 0.0) -> None:
        self.precision = "auto"
        self.sure = sure
        self.drift = drift
        self.requests: list[tuple[str, EngineRequest]] = []

    async def set_kv_precision(self, precision: str) -> KvSwitch:
        self.precision = precision
        return KvSwitch("auto", precision, 0.0, 0, 0, 1, 1)

    async def run(self, request: EngineRequest, emit: Emit) -> EngineReply:
        self.requests.append((self.precision, request))
        body: dict[str, Any] = dict(request.body)
        choice: dict[str, Any] = {"text": "a"}
        if "prompt_logprobs" in body:
            sure = self.sure[self.precision]
            self.sure["auto"] += self.drift
            position = {"10": {"logprob": math.log(sure)}, "11": {"logprob": math.log(1 - sure)}}
            choice["prompt_logprobs"] = [None] + [position] * (len(body["prompt"]) - 1)
        else:
            changed = self.precision == "fp8" and body["prompt"] == [4, 5]
            choice |= {"text": "b" if changed else "a", "token_ids": ANSWER}
        return EngineReply(status=200, body=json.dumps({"id": "x", "choices": [choice]}).encode())

    def stats(self) -> EngineStats:
        return EngineStats(kv_precision="bfloat16", kv_block_tokens=128)


async def measured(engine: object, steps: list[tuple[str, float]] | None = None) -> Any:
    def on_step(text: str, fraction: float) -> None:
        if steps is not None:
            steps.append((text, fraction))

    return await measure(cast("Engine", engine), "dense", PROMPTS, 8, on_step)


async def test_the_figures_of_a_table() -> None:
    engine = TableEngine({"auto": 0.8, "fp8": 0.6})
    steps: list[tuple[str, float]] = []
    found = await measured(engine, steps)
    quality = found.quality["fp8"]
    assert quality.agreement.value == 1.0
    assert quality.kl.value == pytest.approx(0.8 * math.log(0.8 / 0.6) + 0.2 * math.log(0.2 / 0.4), abs=1e-6)
    assert quality.consistency.value == pytest.approx(2 / 3)
    assert (quality.prompts, quality.positions) == (3, 6)
    assert found.itself.kl.value == 0.0
    assert found.itself.agreement.value == found.itself.consistency.value == 1.0
    assert (found.own, found.longest_prompt, found.block_tokens) == ("bfloat16", 4, 128)
    assert engine.precision == "auto"
    fractions = [fraction for _, fraction in steps]
    assert fractions[0] == 0.0
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(14 / 15)


async def test_both_precisions_read_the_same_texts_and_share_no_prefix() -> None:
    engine = TableEngine({"auto": 0.8, "fp8": 0.6})
    await measured(engine)
    read: dict[str, list[Any]] = {"auto": [], "fp8": []}
    for precision, request in engine.requests:
        assert request.endpoint is Endpoint.COMPLETION
        assert request.body["temperature"] == 0
        if "prompt_logprobs" in request.body:
            assert request.body["prompt_logprobs"] == TOP
            read[precision].append(request.body["prompt"])
    texts = [[*prompt.ids, *ANSWER] for prompt in PROMPTS]
    assert read == {"auto": texts * 2, "fp8": texts}
    tenants = [request.tenant for _, request in engine.requests]
    assert len(set(tenants)) == len(tenants)
    assert "" not in tenants


async def test_another_likeliest_token_is_a_disagreement() -> None:
    found = await measured(TableEngine({"auto": 0.8, "fp8": 0.4}))
    assert found.quality["fp8"].agreement.value == 0.0


async def test_a_cache_that_was_not_read_is_no_good_news() -> None:
    with pytest.raises(QualityError, match="was not read"):
        await measured(TableEngine({"auto": 0.8, "fp8": 0.8}))


async def test_an_engine_that_does_not_repeat_itself_is_not_measured() -> None:
    with pytest.raises(QualityError, match="does not repeat itself"):
        await measured(TableEngine({"auto": 0.8, "fp8": 0.6}, drift=0.001))


async def test_an_engine_that_cannot_change_is_refused_by_its_blockers() -> None:
    class Fixed(FixedKvPrecision):
        kv_blockers = ("CUDA graphs", "speculative decoding")

    with pytest.raises(FixedPrecisionError, match="CUDA graphs; speculative decoding"):
        await measured(Fixed())


async def test_what_the_engine_refuses_is_told() -> None:
    class Refusing(TableEngine):
        async def run(self, request: EngineRequest, emit: Emit) -> EngineReply:
            return EngineReply(status=400, body=b'{"error": "too long"}')

    class Stuck(TableEngine):
        async def set_kv_precision(self, precision: str) -> KvSwitch:
            raise KvPrecisionError("the KV precision was not changed: no memory")

    class Silent(TableEngine):
        async def run(self, request: EngineRequest, emit: Emit) -> EngineReply:
            return EngineReply(status=200, body=b'{"choices": [{"text": "", "token_ids": [1]}]}')

    sure = {"auto": 0.8, "fp8": 0.6}
    for engine, words in (
        (Refusing(sure), "too long"),
        (Stuck(sure), "no memory"),
        (Silent(sure), "log-probabilities"),
    ):
        with pytest.raises(QualityError, match=words):
            await measured(engine)
