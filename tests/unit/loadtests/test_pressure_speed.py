from __future__ import annotations

import pytest

from loadtests.pressure_speed import ANSWER_TOKENS, REPEATS, STREAMS, fitted, speed_of
from loadtests.running_cluster import ClusterError
from loadtests.targets import parse_target
from tests.unit.loadtests.sse_server import Behaviour, serving


def test_a_step_is_a_line_through_one_sequence_and_several() -> None:
    speed = fitted(600.0, 0.04, 0.04 + (STREAMS - 1) * 0.003)
    assert speed.prefill_tokens_per_s == 600.0
    assert (speed.decode_step_base_s, speed.decode_step_per_seq_s) == pytest.approx((0.037, 0.003))
    assert fitted(600.0, 0.04, 0.03).decode_step_per_seq_s == 0.0


async def test_it_asks_at_rest_and_never_the_same_prompt() -> None:
    behaviour = Behaviour(gap_s=0.002)
    async with serving(behaviour) as url:
        speed = await speed_of(parse_target(url), "dense")
    prompts = [str(body["messages"]) for body in behaviour.bodies]
    assert len(set(prompts)) == len(prompts) == REPEATS * (2 + STREAMS)
    assert {body["max_tokens"] for body in behaviour.bodies} == {2, ANSWER_TOKENS}
    assert 0.002 <= speed.decode_step_base_s + speed.decode_step_per_seq_s < 0.05


async def test_a_server_that_does_not_answer_is_an_error() -> None:
    async with serving(Behaviour(status=503)) as url:
        with pytest.raises(ClusterError, match="503"):
            await speed_of(parse_target(url), "dense")
