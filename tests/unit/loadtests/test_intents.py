import pytest

from cluster.routing.intent import Intent
from cluster.routing.intent_prototypes import read_prototypes
from loadtests.intents import Labelled, accuracy, encoded, labelled, lexical


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


PROMPTS = [
    Labelled("math", "What is 17 * 23?"),
    Labelled("facts", "Summarize the text."),
    Labelled("facts", "Blue."),
    Labelled("smalltalk", "Hello!"),
]


def test_accuracy_counts_what_is_right_and_what_is_silent() -> None:
    found = accuracy(PROMPTS, lexical(PROMPTS))
    assert (found.prompts, found.right, found.silent) == (4, 0.5, 0.25)
    assert found.by_intent == {"facts": 0.0, "math": 1.0, "smalltalk": 1.0}
    with pytest.raises(ValueError, match="no prompts"):
        accuracy([], [])


def test_the_encoder_tells_it_together_with_the_words() -> None:
    prototypes = read_prototypes()
    vectors = {prompt.text: prototypes.vectors[prototypes.intents.index(prompt.intent)] for prompt in PROMPTS}
    assert accuracy(PROMPTS, encoded(PROMPTS, vectors, prototypes)).right == 1.0
