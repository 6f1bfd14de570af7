"""Text for fitting and text for measuring never meet, and both are the same each time."""

from __future__ import annotations

import pytest
import torch

from deployments.models import text
from deployments.models.conversations import prompts


class _Letters:
    """A tokenizer of one token per letter."""

    def __call__(self, line: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) % 1000 for letter in line]}


@pytest.mark.parametrize("kind", text.KINDS)
def test_splits_are_disjoint_and_repeatable(kind: text.Kind) -> None:
    train, held_out = text.documents(kind, "train"), text.documents(kind, "held_out")
    assert not set(train) & set(held_out)
    assert len(train) > 2 * len(held_out) > 20
    assert text.documents(kind, "held_out") == held_out
    assert max(map(len, train)) <= 3000


def test_what_repeats_an_earlier_text_is_left_out() -> None:
    once = "\n".join(f"line {number}" for number in range(10))
    renamed = once.replace("line 0", "another title")
    assert text._distinct([once, renamed, "something else"]) == [once, "something else"]


def test_sequences_are_cut_to_what_was_asked_for() -> None:
    packed = text.sequences(["abc" * 300] * 10, _Letters(), 2000)
    assert packed.shape == (3, text.WINDOW) and packed.dtype == torch.int64


def test_documents_are_told_apart() -> None:
    packed = text.sequences(["a" * 200] * 3, _Letters(), 10_000)
    assert packed[0, 200] == packed[0, 401] == 0
    assert packed[0, 201] == ord("a")


def test_too_little_text_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fill a sequence"):
        text.sequences(["short"], _Letters(), 10_000)


def test_questions_do_not_hold_the_one_that_is_measured() -> None:
    asked = prompts()
    assert len(set(asked)) == len(asked) > 60
    assert not any("France" in prompt for prompt in asked)
