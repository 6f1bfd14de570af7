import json
import random

import httpx
import pytest

from loadtests.perturb import PERTURBATIONS
from loadtests.thrash import measure

TEXT = "Please write a poem about the old mill by our river. What is big there?"


@pytest.mark.parametrize("name", list(PERTURBATIONS))
def test_a_perturbation_is_repeatable_and_keeps_most_words(name: str) -> None:
    changed = [PERTURBATIONS[name](TEXT, random.Random(seed)) for seed in (1, 1, 2, 3, 4)]
    assert changed[0] == changed[1]
    assert any(text != TEXT for text in changed)
    kept = {word.strip(".?").lower() for word in TEXT.split()}
    for text in changed:
        assert len(kept & {word.strip(".?").lower() for word in text.split()}) >= len(kept) - 6


def test_changes_are_counted_by_what_the_cluster_decides() -> None:
    def decide(request: httpx.Request) -> httpx.Response:
        text = json.loads(request.content)["messages"][0]["content"]
        model = "mini" if text.islower() else "dense"
        return httpx.Response(200, json={"model": model, "role": "strong", "signals": {"intent": "facts"}})

    with httpx.Client(base_url="http://cluster", transport=httpx.MockTransport(decide)) as client:
        found = measure(client, ["Hello There"] * 200, "case", 8, seed=1)
        assert (found.prompts, found.role_changes, found.intent_changes) == (200, 0.0, 0.0)
        # A third of the changes of case is to lower case.
        assert 0.2 < found.model_changes < 0.45
        assert measure(client, ["one sentence"], "order", None, seed=1).prompts == 0
