"""The knobs about answers."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.api.answer_knobs import Passage, Verify
from cluster.api.chat import parse_chat
from cluster.api.errors import ApiError
from cluster.api.knobs import Knobs
from cluster.config.ingress import LimitsConfig
from cluster.config.routing import KnobsConfig
from cluster.routing.knob_bounds import check_knobs

CANARY = "canary-77aa"


def knobs_of(**knobs: Any) -> Knobs:
    return parse(**knobs).knobs


def parse(**knobs: Any) -> Any:
    body = {"model": "auto", "messages": [{"role": "user", "content": "x"}], "pointsman": knobs}
    return parse_chat(body, LimitsConfig())


def test_they_are_read_and_kept_from_the_engine() -> None:
    passages = [{"id": "a", "text": "b", "score": 0.5}, {"id": "c", "text": ""}]
    request = parse(verify={"regex": "x"}, grounding=False, passages=passages, two_stage=True)
    assert request.knobs.verify == Verify(regex="x")
    assert (request.knobs.grounding, request.knobs.two_stage) == (False, True)
    assert request.knobs.passages == (Passage("a", "b", 0.5), Passage("c", ""))
    assert "pointsman" not in request.body
    assert knobs_of(verify={"verifier": True, "json_schema": {"type": "object"}}).verify == Verify(
        json_schema={"type": "object"}, verifier=True
    )


@pytest.mark.parametrize(
    ("knobs", "param"),
    [
        ({"verify": {}}, "pointsman.verify"),
        ({"verify": {"verifier": False}}, "pointsman.verify"),
        ({"verify": {"hook": CANARY}}, "pointsman.verify"),
        ({"verify": {"regex": CANARY * 200}}, "pointsman.verify.regex"),
        ({"verify": {"exact": CANARY * 9000}}, "pointsman.verify.exact"),
        ({"verify": {"json_schema": CANARY}}, "pointsman.verify.json_schema"),
        ({"verify": {"json_schema": {"enum": [CANARY * 4000]}}}, "pointsman.verify.json_schema"),
        ({"grounding": CANARY}, "pointsman.grounding"),
        ({"two_stage": 1}, "pointsman.two_stage"),
        ({"passages": [{"id": str(at), "text": ""} for at in range(33)]}, "pointsman.passages"),
        ({"passages": [CANARY]}, "pointsman.passages"),
        ({"passages": [{"id": "a"}]}, "pointsman.passages.text"),
        ({"passages": [{"id": "", "text": "b"}]}, "pointsman.passages.id"),
        ({"passages": [{"id": "a", "text": CANARY * 1000}]}, "pointsman.passages.text"),
        ({"passages": [{"id": "a", "text": "b", "score": 2}]}, "pointsman.passages.score"),
        ({"passages": [{"id": "a", "text": "b"}] * 2}, "pointsman.passages"),
    ],
)
def test_mistakes_are_named(knobs: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        knobs_of(**knobs)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert "canary" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("verify", {"exact": "x"}),
        ("grounding", True),
        ("passages", [{"id": "a", "text": "b"}]),
        ("two_stage", True),
        ("min_confidence", 0.5),
    ],
)
def test_the_operator_may_keep_each(name: str, value: Any) -> None:
    request = parse(**{name: value})
    check_knobs(KnobsConfig(), request)
    with pytest.raises(ApiError) as caught:
        check_knobs(KnobsConfig.model_validate({name: False}), request)
    assert caught.value.param == f"pointsman.{name}"
