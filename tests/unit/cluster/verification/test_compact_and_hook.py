"""What a verifier model and an operator's hook are asked, and what is read from what they say."""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any

import pytest

from cluster.verification.compact import MAX_ANSWER_CHARS, read_judgement, right_answer, same_meaning
from cluster.verification.hook import HookError, judge_with, load_hook
from cluster.verification.verdict import Verdict


def reply(content: str | None = None, **tops: float) -> Any:
    listed = [{"token": token, "logprob": math.log(p)} for token, p in tops.items()]
    return {"choices": [{"message": {"content": content}, "logprobs": {"content": [{"top_logprobs": listed}]}}]}


def test_the_judgement_is_read_from_the_probabilities_of_the_two_words() -> None:
    said = reply("No", **{"Yes": 0.3, " yes": 0.3, "no": 0.2, "maybe": 0.2})
    verdict = read_judgement(said, 0.5)
    assert verdict.ok and verdict.score == pytest.approx(0.75)
    assert not read_judgement(said, 0.8).ok


@pytest.mark.parametrize(
    ("said", "ok", "score"),
    [
        ({"choices": [{"message": {"content": "Yes."}}]}, True, 1.0),
        ({"choices": [{"message": {"content": " no"}}]}, False, 0.0),
        (reply("hm", hm=1.0), False, None),
        ({"choices": []}, False, None),
        ({"choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": 1}, 2]}]}}]}, False, None),
        (None, False, None),
    ],
)
def test_without_probabilities_the_word_counts_and_without_either_nothing_is_verified(
    said: Any, ok: bool, score: float | None
) -> None:
    verdict = read_judgement(said, 0.5)
    assert (verdict.ok, verdict.score) == (ok, score)


def test_what_is_asked_is_short_and_deterministic() -> None:
    for body in (right_answer("q" * 10**6, "a" * 10**6), same_meaning("a" * 10**6, "b" * 10**6)):
        assert (body["max_tokens"], body["temperature"], body["logprobs"]) == (1, 0.0, True)
        assert len(str(body["messages"])) < 2 * MAX_ANSWER_CHARS + 600


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = ModuleType("a_hook_of_tests")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


def test_a_hook_says_yes_no_or_a_verdict_and_one_that_raises_verifies_nothing(module: ModuleType) -> None:
    module.check = lambda question, answer: answer == "right"  # type: ignore[attr-defined]
    hook = load_hook("a_hook_of_tests:check")
    assert judge_with(hook, "q", "right").ok
    assert not judge_with(hook, "q", "wrong").ok
    said = judge_with(lambda question, answer: Verdict(True, "theirs", "because", 0.5), "q", "a")
    assert said == Verdict(True, "hook", "because", 0.5)
    raised = judge_with(lambda question, answer: 1 / 0 > 1, "q", "a")
    assert raised == Verdict(False, "hook", "the hook raised ZeroDivisionError")


@pytest.mark.parametrize("path", ["a_hook_of_tests:missing", "no.such.module:check"])
def test_a_hook_that_cannot_be_used_is_named(module: ModuleType, path: str) -> None:
    with pytest.raises(HookError, match=r"routing\.feedback\.hook"):
        load_hook(path)
