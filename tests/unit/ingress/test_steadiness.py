from __future__ import annotations

from deployments.ingress.steadiness import READ_CHARACTERS, Steadiness

PROMPT = "What is the capital of France?"


def test_the_same_words_are_known_whatever_their_case_spaces_and_punctuation():
    steadiness = Steadiness()
    assert steadiness.asked("auto", PROMPT, "dense") is None
    assert steadiness.asked("auto", "  what is the CAPITAL of france ", "dense") is True
    assert steadiness.asked("auto", PROMPT, "mini") is False
    assert steadiness.asked("auto", PROMPT, "mini") is True


def test_other_words_and_another_role_are_another_request():
    steadiness = Steadiness()
    steadiness.asked("auto", PROMPT, "dense")
    assert steadiness.asked("fast", PROMPT, "mini") is None
    assert steadiness.asked("auto", PROMPT + " And of Spain?", "mini") is None


def test_short_texts_say_something_else_each_time():
    steadiness = Steadiness()
    assert [steadiness.asked("auto", "Go on!", model) for model in ("dense", "mini")] == [None, None]


def test_long_texts_differ_by_their_length():
    steadiness = Steadiness()
    steadiness.asked("auto", "word " * READ_CHARACTERS, "dense")
    assert steadiness.asked("auto", "word " * READ_CHARACTERS, "dense") is True
    assert steadiness.asked("auto", "word " * (READ_CHARACTERS + 1), "dense") is None


def test_no_more_is_remembered_than_allowed():
    steadiness = Steadiness(remembered=2)
    for number in range(3):
        steadiness.asked("auto", f"{PROMPT} {number}", "dense")
    assert steadiness.asked("auto", f"{PROMPT} 0", "dense") is None
    assert steadiness.asked("auto", f"{PROMPT} 2", "dense") is True


def test_half_of_a_character_is_no_error():
    assert Steadiness().asked("auto", "\ud800" + PROMPT, "dense") is None
