import pytest

from cluster.routing.intent import Intent
from loadtests.intents import Labelled, accuracy, labelled


def test_the_labelled_set_covers_every_intent_in_both_halves_and_repeats_nothing() -> None:
    prompts = labelled()
    assert len(prompts) >= 300
    assert len({prompt.text.lower() for prompt in prompts}) == len(prompts)
    assert {prompt.intent for prompt in prompts} == {intent.value for intent in Intent}
    for half in (True, False):
        counts = {intent.value: 0 for intent in Intent}
        for prompt in prompts:
            counts[prompt.intent] += prompt.held_out is half
        assert min(counts.values()) >= 10


def test_accuracy_counts_what_is_right_and_what_is_silent() -> None:
    found = accuracy(
        [
            Labelled("math", "What is 17 * 23?"),
            Labelled("facts", "Summarize the text."),
            Labelled("facts", "Blue."),
            Labelled("smalltalk", "Hello!"),
        ]
    )
    assert (found.prompts, found.right, found.silent) == (4, 0.5, 0.25)
    assert found.by_intent == {"facts": 0.0, "math": 1.0, "smalltalk": 1.0}
    with pytest.raises(ValueError, match="no prompts"):
        accuracy([])
