import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.routing.intent import Intent, lexical_intent


@pytest.mark.parametrize(
    ("text", "intent"),
    [
        ("Write a python function that reverses a list.", "code"),
        ("What is 17 * 23?", "math"),
        ("What is the capital of France?", "facts"),
        ("Brainstorm ten names for a bakery.", "ideation"),
        ("Rephrase this more politely: give me the report.", "rewrite"),
        ("Summarize the following article in one sentence.", "summary"),
        ("Extract all names from the text as JSON.", "data"),
        ("Hello, how are you?", "smalltalk"),
    ],
)
def test_each_intent_has_its_signs(text: str, intent: str) -> None:
    assert lexical_intent(text).value == intent


@pytest.mark.parametrize(
    "text",
    [
        "Tell me a story about a python that lived in the jungle.",
        "Let us have a look at the class reunion (it was fun), then import the guests' names.",
        "The function of the heart is to pump blood.",
        "Which class did Darwin teach?",
    ],
)
def test_everyday_words_make_no_code(text: str) -> None:
    assert lexical_intent(text).value != "code"


def test_without_a_sign_the_intent_is_missing_and_said_to_be() -> None:
    reading = lexical_intent("Blue.")
    assert reading.value is None
    assert str(reading) == "missing"


@given(st.text(max_size=300))
def test_any_text_has_one_of_the_intents_or_none(text: str) -> None:
    assert lexical_intent(text).value in {None, *(intent.value for intent in Intent)}


def test_the_cost_does_not_grow_with_the_text() -> None:
    for text in ("convert " * 70_000, "boil " * 90_000, "1 + " * 100_000, " " * 500_000, "write a " * 60_000):
        started = time.thread_time()
        lexical_intent(text)
        assert time.thread_time() - started < 0.1
