"""The answer from passages alone."""

from __future__ import annotations

import pytest

from cluster.api.answer_knobs import Passage
from cluster.routing.template import MAX_PASSAGE_CHARS, NOTHING_GROUNDED, template_answer


def test_the_best_passages_are_quoted_with_their_ids() -> None:
    given = [
        Passage("a", "Of no score."),
        Passage("b", "Second\nbest.", 0.5),
        Passage("c", "Best.", 0.9),
        Passage("d", "Third.", 0.1),
    ]
    answer = template_answer(given)
    assert answer.citations == ("c", "b", "d")
    assert answer.text.splitlines()[1:] == ["- Best. [c]", "- Second best. [b]", "- Third. [d]"]


@pytest.mark.parametrize("passages", [(), (Passage("a", " \n"),)])
def test_without_passages_nothing_is_asserted(passages: tuple[Passage, ...]) -> None:
    answer = template_answer(passages)
    assert (answer.text, answer.citations) == (NOTHING_GROUNDED, ())


def test_long_passages_are_cut() -> None:
    answer = template_answer([Passage("a", "x" * 10_000)])
    assert len(answer.text) < MAX_PASSAGE_CHARS + 200
