import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.api.errors import ApiError
from cluster.window import Turn, slide

ROLES = st.sampled_from(["system", "developer", "user", "user", "assistant", "tool"])
TURNS = st.lists(st.builds(Turn, ROLES, st.integers(0, 40)), max_size=30)


@settings(max_examples=300, deadline=None)
@given(TURNS, st.integers(1, 400), st.integers(0, 50), st.integers(0, 20))
def test_a_window_holds_what_it_promises(turns: list[Turn], window: int, room: int, overhead: int) -> None:
    try:
        decision = slide(turns, window, room, overhead)
    except ApiError:
        with pytest.raises(ApiError):
            slide(turns, max(1, window - 1), room, overhead)
        return
    kept = list(decision.kept)
    tokens = sum(turns[index].tokens for index in kept)
    assert tokens + overhead == decision.prompt_tokens <= window - room
    assert kept == sorted(set(kept))
    assert decision.truncated_turns == len(turns) - len(kept)
    assert decision.truncated_tokens == sum(turn.tokens for turn in turns) - tokens
    assert {index for index, turn in enumerate(turns) if turn.role in ("system", "developer")} <= set(kept)
    users = [index for index, turn in enumerate(turns) if turn.role == "user"]
    assert not users or set(range(users[-1], len(turns))) <= set(kept)

    again = slide([turns[index] for index in kept], window, room, overhead)
    assert again.kept == tuple(range(len(kept)))

    wider = slide(turns, window + 7, room, overhead)
    assert set(kept) <= set(wider.kept)

    for index in kept:
        # No tool result without the call before it, leaving system messages aside.
        before = next((at for at in range(index - 1, -1, -1) if turns[at].role not in ("system", "developer")), None)
        if turns[index].role == "tool" and before is not None and users and index > users[0]:
            assert before in kept


@given(TURNS)
def test_an_empty_window_refuses_rather_than_lies(turns: list[Turn]) -> None:
    with contextlib.suppress(ApiError):
        assert slide(turns, 1, 1).prompt_tokens == 0
