from __future__ import annotations

import json

import pytest

from deployments.engines.protocol import TokenUsage
from deployments.engines.truncation import with_truncation

EVENT = 'data: {"id":"c1","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'


def test_what_left_the_window_is_told_in_the_event() -> None:
    told = with_truncation(EVENT, TokenUsage(truncated_turns=4, truncated_tokens=310))
    assert told.endswith("}\n\n")
    event = json.loads(told.removeprefix("data: "))
    assert event.pop("pointsman") == {"truncated_turns": 4, "truncated_tokens": 310}
    assert event == json.loads(EVENT.removeprefix("data: "))


@pytest.mark.parametrize("lost", [TokenUsage(truncated_tokens=9), TokenUsage(truncated_turns=1)])
def test_tokens_alone_are_told_too(lost: TokenUsage) -> None:
    assert '"pointsman"' in with_truncation(EVENT, lost)


def test_nothing_is_said_when_nothing_left() -> None:
    assert with_truncation(EVENT, TokenUsage(prompt_tokens=5)) == EVENT
