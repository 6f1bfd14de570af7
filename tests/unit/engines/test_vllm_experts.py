"""Experts of a vLLM engine from the replica's side, with engines that are made up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cluster.experts.heat import MAX_TRAFFIC
from cluster.experts.load import ExpertShape, packed
from deployments.engines import vllm_experts, vllm_internals
from deployments.engines.vllm_experts import VllmExperts
from deployments.engines.vllm_kv import Watched

SHAPE = ExpertShape(2, 4, 2)
ROUTED = np.array([[[0, 1], [2, 3]], [[0, 2], [2, 1]], [[0, 1], [2, 3]]], np.int16)
"""Of three tokens."""
COUNTS = np.array([[3, 2, 1, 0], [0, 1, 3, 2]], np.int64)


@pytest.fixture(autouse=True)
def _ask_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_experts, "LOAD_PERIOD_S", 0.0)


async def detected(**answers: Any) -> VllmExperts:
    async def call(method: str, *_: Any) -> Any:
        return answers[method]

    engine: Any = SimpleNamespace(
        engine_core=SimpleNamespace(call_utility_async=call),
        errored=False,
        model_config=SimpleNamespace(get_num_experts=lambda: 4),
    )
    experts = VllmExperts(engine)
    await experts.detect()
    return experts


async def test_what_an_engine_returns_on_its_own_is_counted_at_the_end_of_a_request() -> None:
    experts = await detected(**{vllm_internals.EXPERTS_METHOD: ["own", [0, 1], []]})
    assert experts.blockers == ()
    await experts.refresh()
    assert experts.load is None
    use = await experts.take(Watched(experts=[ROUTED], log_experts=2), "code")
    assert use is not None
    assert (use.shape, use.tokens, use.distinct) == (SHAPE, 3, 6)
    assert [(log.array(SHAPE).tolist(), log.left_out) for log in use.logs] == [(ROUTED[:2].tolist(), 1)]
    await experts.take(Watched(experts=[ROUTED, ROUTED]), "chat")
    await experts.refresh()
    assert experts.load is not None
    assert experts.load.counts().tolist() == (3 * COUNTS).tolist()
    assert {name: counts.tolist() for name, counts in experts.load.traffic().items()} == {
        "code": COUNTS.tolist(),
        "chat": (2 * COUNTS).tolist(),
    }


async def test_what_the_tap_counted_comes_with_the_request_and_the_load_from_the_core() -> None:
    told = {
        vllm_internals.EXPERTS_METHOD: ["tap", [2, 4, 2], []],
        vllm_internals.EXPERT_LOAD_METHOD: packed(5 * COUNTS),
        vllm_internals.EXPERT_LOG_METHOD: [[[7, 8, 9], ROUTED.astype("<u2").tobytes(), 0]],
    }
    experts = await detected(**told)
    use = await experts.take(Watched(["a"], experts=[COUNTS[np.newaxis]], log_experts=8), "code")
    assert use is not None
    assert (use.tokens, use.logs[0].tokens) == (3, (7, 8, 9))
    await experts.refresh()
    assert experts.load is not None
    assert experts.load.counts().tolist() == (5 * COUNTS).tolist()


async def test_an_engine_that_does_not_tell_says_why() -> None:
    experts = await detected(**{vllm_internals.EXPERTS_METHOD: ["", [], ["the model is compiled"]]})
    await experts.refresh()
    assert (experts.blockers, experts.load) == (("the model is compiled",), None)
    assert await experts.take(Watched(), "code") is None


async def test_kinds_of_traffic_are_bounded() -> None:
    experts = await detected(**{vllm_internals.EXPERTS_METHOD: ["own", [0, 1], []]})
    for number in range(MAX_TRAFFIC + 5):
        await experts.take(Watched(experts=[ROUTED]), f"kind {number}")
    await experts.refresh()
    assert experts.load is not None
    assert len(experts.load.by_traffic) == MAX_TRAFFIC
    assert experts.load.traffic()[""].tolist() == (6 * COUNTS).tolist()


async def test_layers_without_experts_are_left_out() -> None:
    experts = await detected(**{vllm_internals.EXPERTS_METHOD: ["own", [1, 2], []]})
    dense = np.zeros((3, 1, 2), np.int16)
    use = await experts.take(Watched(experts=[np.concatenate([dense, ROUTED], axis=1)]), "code")
    assert use is not None
    assert (use.shape, use.distinct) == (SHAPE, 6)


async def test_experts_that_cannot_be_told_cost_neither_the_answer_nor_the_engine() -> None:
    told = {vllm_internals.EXPERTS_METHOD: ["tap", [2, 4, 2], []], vllm_internals.EXPERT_LOAD_METHOD: b"odd"}
    experts = await detected(**told)
    await experts.refresh()
    assert experts.blockers == ("counting failed; see the log of the replica",)
    assert await experts.take(Watched(experts=[COUNTS[np.newaxis]]), "code") is None
    own = await detected(**{vllm_internals.EXPERTS_METHOD: ["own", [0, 1], []]})
    assert await own.take(Watched(experts=[ROUTED + 400]), "code") is None
