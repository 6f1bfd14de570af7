"""The quality of a KV precision, measured on a real engine: fp8 differs, the model's own repeats itself to the last bit."""

from __future__ import annotations

import pytest

from deployments.engines.vllm_engine import VllmEngine
from deployments.models.kv_measurement import FixedPrecisionError, Measured, measure
from deployments.models.kv_prompts import KINDS, make_prompts
from deployments.models.sources import resolve
from tests.integration.dense_engine import MAX_MODEL_LEN

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    # Importing vLLM and its dependencies warns about many things that are not ours.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.slow,
]

TOKENS = 12


async def _measure(engine: VllmEngine, count: int) -> Measured:
    folder = resolve("embedded:dense", None, lambda _message, _done: None)
    prompts = make_prompts(folder, count, MAX_MODEL_LEN - TOKENS - 1)
    assert {prompt.kind for prompt in prompts} == set(KINDS)
    return await measure(engine, "dense", prompts, TOKENS, lambda _text, _fraction: None)


async def test_fp8_differs_and_the_own_precision_repeats_itself(engine: VllmEngine) -> None:
    if engine.kv_blockers:
        # A processor before AVX-512.
        with pytest.raises(FixedPrecisionError, match="AVX-512"):
            await _measure(engine, 3)
        return
    found = await _measure(engine, 9)
    assert found.longest_prompt > 3 * found.block_tokens
    fp8 = found.quality["fp8"]
    assert (found.itself.kl.value, found.itself.agreement.value, found.itself.consistency.value) == (0.0, 1.0, 1.0)
    # A model that chose at random among 49,152 tokens would agree in none.
    assert 0.7 < fp8.agreement.value <= 1.0
    assert 0 < fp8.kl.low <= fp8.kl.value <= fp8.kl.high < 0.5
    assert 0 <= fp8.consistency.value <= 1
    assert 0.5 < fp8.covered <= 1
    assert 9 <= fp8.positions <= 9 * TOKENS
    assert engine.stats().kv_precision == found.own
