from typing import Any

import pytest

from cluster.config.precision import PrecisionConfig
from cluster.precision.sampling import Change, conservative
from cluster.routing.latency_class import LatencyClass

CONFIG = PrecisionConfig()
BATCH, STANDARD = LatencyClass.BATCH, LatencyClass.STANDARD


def change(body: dict[str, Any], urgency: LatencyClass = STANDARD, **terms: Any) -> dict[str, Any]:
    """What differs afterwards."""
    before = dict(body)
    config = CONFIG.model_copy(update=terms)
    after, changes = conservative(config, body, latency_class=urgency, critical=False)
    assert body == before
    differing = {field: value for field, value in after.items() if field not in body or body[field] != value}
    assert {one.field: one.new for one in changes} == differing
    assert all(one.old == body.get(one.field) for one in changes)
    assert set(after) >= set(body)
    return differing


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"temperature": 1.5, "top_p": 0.95}, {"temperature": 0.3, "top_p": 0.9}),
        ({"temperature": 0.3, "top_p": 0.9}, {}),
        ({"temperature": 0.1, "top_p": 0.2, "seed": 3, "messages": []}, {}),
        ({}, {"temperature": 0.3, "top_p": 0.9}),
        ({"temperature": None, "top_p": None}, {"temperature": 0.3, "top_p": 0.9}),
        ({"temperature": 0}, {}),
        ({"temperature": 0.0, "top_p": 1}, {}),
        ({"temperature": "hot", "top_p": True}, {}),
        ({"temperature": [1], "top_p": {}}, {}),
        ({"temperature": 2, "max_tokens": 9999, "n": 4}, {"temperature": 0.3, "top_p": 0.9}),
    ],
)
def test_temperature_and_top_p_are_capped(body: dict[str, Any], expected: dict[str, Any]) -> None:
    assert change(body) == expected


GREEDY = {"temperature": 0}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"max_tokens": 1000}, {"max_tokens": 256}),
        ({"max_completion_tokens": 1000}, {"max_completion_tokens": 256}),
        ({"max_tokens": 300, "max_completion_tokens": 300}, {"max_tokens": 256, "max_completion_tokens": 256}),
        ({"max_tokens": 100}, {}),
        ({"max_tokens": 256}, {}),
        ({}, {"max_tokens": 256}),
        ({"max_tokens": None}, {"max_tokens": 256}),
        ({"max_tokens": "many"}, {}),
        ({"max_tokens": 1000, "min_tokens": 400}, {"max_tokens": 400}),
        ({"max_tokens": 1000, "min_tokens": True}, {"max_tokens": 256}),
        ({"min_tokens": 400}, {"max_tokens": 400}),
        ({"min_tokens": 4}, {"max_tokens": 256}),
    ],
)
def test_best_effort_is_kept_short(body: dict[str, Any], expected: dict[str, Any]) -> None:
    assert change(GREEDY | body, BATCH) == expected
    assert change(GREEDY | body, STANDARD) == {}
    assert change(GREEDY | body, BATCH, best_effort=()) == {}


def test_greedy_is_not_given_to_those_who_want_several_answers() -> None:
    assert change({"temperature": 1.0}, max_temperature=0.0) == {"temperature": 0.0}
    assert change({"temperature": 1.0, "n": 2}, max_temperature=0.0) == {"top_p": 0.9}


def test_what_is_critical_stays_as_it_is() -> None:
    body = {"temperature": 2, "top_p": 1, "max_tokens": 10_000}
    after, changes = conservative(CONFIG, body, latency_class=BATCH, critical=True)
    assert after == body and changes == ()
    assert after is not body


def test_open_fields_count_as_what_the_model_makes_of_them() -> None:
    terms = {"latency_class": STANDARD, "critical": False}
    after, changes = conservative(CONFIG, {"n": 1}, default_temperature=0.2, default_top_p=0.8, **terms)
    assert after == {"n": 1} and changes == ()
    _, changes = conservative(CONFIG, {}, default_temperature=0.6, default_top_p=0.95, **terms)
    assert changes == (Change("temperature", None, 0.3), Change("top_p", None, 0.9))
