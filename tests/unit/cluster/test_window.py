import pytest

from cluster.api.errors import ApiError
from cluster.window import Turn, slide

CHAT = (
    Turn("system", 10),
    Turn("user", 20),
    Turn("assistant", 30),
    Turn("user", 5),
    Turn("assistant", 8),
    Turn("tool", 7),
    Turn("assistant", 9),
    Turn("user", 4),
)


def test_what_fits_stays() -> None:
    decision = slide(CHAT, 100, 5, 2)
    assert decision.kept == tuple(range(8))
    assert (decision.truncated_turns, decision.truncated_tokens, decision.prompt_tokens) == (0, 0, 95)


def test_the_oldest_exchange_leaves_as_a_whole_and_is_counted() -> None:
    decision = slide(CHAT, 99, 5, 2)
    assert decision.kept == (0, 3, 4, 5, 6, 7)
    assert (decision.truncated_turns, decision.truncated_tokens, decision.prompt_tokens) == (2, 50, 45)
    assert decision.reason == "2 older turns left the window of 99 tokens"


def test_a_tool_result_leaves_with_its_call() -> None:
    assert slide(CHAT, 49, 5, 2).kept == (0, 7)


def test_the_last_question_stays_with_its_tool_calls() -> None:
    turns = (*CHAT, Turn("assistant", 3), Turn("tool", 6))
    assert slide(turns, 30, 5, 2).kept == (0, 7, 8, 9)


def test_a_last_turn_that_does_not_fit_is_refused_with_the_sizes() -> None:
    with pytest.raises(ApiError) as caught:
        slide(CHAT, 20, 5, 2)
    assert caught.value.status == 400
    for size in ("14", "5", "2", "20"):
        assert f" {size} " in caught.value.message


def test_a_chat_without_user_message_keeps_its_end() -> None:
    assert slide((Turn("assistant", 5), Turn("assistant", 5), Turn("tool", 5)), 12, 1).kept == (1, 2)
    assert slide((Turn("tool", 5),), 12, 1).kept == (0,)
    assert slide((), 12, 1).kept == ()
