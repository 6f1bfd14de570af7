from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deployments.engines.simulated.sequence import VOCABULARY
from deployments.engines.simulated.text import Answer, tokens_of, word_of


@given(st.text(max_size=60))
def test_any_text_becomes_tokens_and_equal_text_equal_tokens(text: str) -> None:
    tokens = tokens_of(text)
    assert tokens == tokens_of(text)
    assert bool(tokens) == bool(text)


@given(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=20))
def test_generated_words_become_the_tokens_they_were(tokens: list[int]) -> None:
    text = "".join(word_of(token, first=index == 0) for index, token in enumerate(tokens))
    assert tokens_of(text) == tokens


@given(st.lists(st.text("ab", max_size=3), max_size=12), st.lists(st.text("ab", min_size=1, max_size=3), max_size=3))
def test_stop_sequences_cut_where_they_would_in_the_whole_text(pieces: list[str], stop: list[str]) -> None:
    answer = Answer(tuple(stop))
    shown = ""
    for piece in pieces:
        shown += answer.push(piece)
        if answer.stopped:
            break
    shown += answer.rest()
    whole = "".join(pieces)
    assert whole.startswith(shown)
    assert not any(item in shown for item in stop)
    assert answer.stopped == any(item in whole for item in stop)
    if not answer.stopped:
        assert shown == whole
