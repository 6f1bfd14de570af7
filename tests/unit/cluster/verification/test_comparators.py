"""JSON schema, regex and exact, with what callers may send of them."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cluster.api.errors import ApiError
from cluster.verification.exact import ExactCheck
from cluster.verification.json_schema import JsonSchemaCheck
from cluster.verification.regex import RegexCheck
from cluster.verification.verdict import MAX_ANSWER_BYTES, Check, Verdict, all_of

PERSON = {"type": "object", "properties": {"age": {"$ref": "#/$defs/age"}}, "required": ["age"]}
SCHEMA: dict[str, Any] = {**PERSON, "$defs": {"age": {"type": "integer", "minimum": 0}}}


@pytest.mark.parametrize(
    ("answer", "ok"), [('{"age": 3}', True), ('{"age": -3}', False), ("{}", False), ("age 3", False), ("[NaN]", False)]
)
def test_a_schema_is_met_or_not(answer: str, ok: bool) -> None:
    verdict = JsonSchemaCheck(SCHEMA).judge(answer)
    assert (verdict.ok, verdict.name) == (ok, "json_schema")


@pytest.mark.parametrize(("answer", "ok"), [("In 1969.", True), ("Long ago.", False)])
def test_a_pattern_is_searched_for(answer: str, ok: bool) -> None:
    assert RegexCheck(r"\b\d{4}\b").judge(answer).ok is ok


def test_anchors_hold_the_whole_answer() -> None:
    assert RegexCheck("^yes$").judge("yes").ok
    assert not RegexCheck("^yes$").judge("yes\nno").ok


@pytest.mark.parametrize(("answer", "ok"), [("  PARIS\n", True), ("Ｐaris", True), ("Paris.", False)])
def test_exact_looks_past_case_space_and_form(answer: str, ok: bool) -> None:
    assert ExactCheck("Paris").judge(answer).ok is ok


def doubling(levels: int) -> dict[str, Any]:
    defs: dict[str, Any] = {"d0": {"type": "string"}}
    for level in range(1, levels):
        ref = {"$ref": f"#/$defs/d{level - 1}"}
        defs[f"d{level}"] = {"anyOf": [ref, ref]}
    return {"$ref": f"#/$defs/d{levels - 1}", "$defs": defs}


@pytest.mark.parametrize(
    "schema",
    [
        doubling(40),
        {"properties": {"const": doubling(40)["$defs"]["d39"]}, "$defs": doubling(40)["$defs"]},
        {"$defs": {"n": {"properties": {"x": {"anyOf": [{"$ref": "#/$defs/n"}] * 2}}}}, "$ref": "#/$defs/n"},
        {"unevaluatedProperties": False},
        {"pattern": "(?=a)b"},
        {"pattern": "a{1000}{1000}"},
        {"$ref": "http://example.com/schema.json"},
        {"$ref": "#/$defs/none"},
        {"type": "nothing"},
        {"enum": ["x" * 1000] * 40},
    ],
)
def test_a_schema_that_could_take_long_is_refused_at_once(schema: dict[str, Any]) -> None:
    began = time.thread_time()
    with pytest.raises(ApiError) as refused:
        JsonSchemaCheck(schema, "pointsman.verify.json_schema")
    assert time.thread_time() - began < 0.5
    assert (refused.value.status, refused.value.param) == (400, "pointsman.verify.json_schema")


@pytest.mark.parametrize("pattern", ["(?=a)b", r"(a)\1", "[", "a{1000}{1000}", "x" * 2000])
def test_a_pattern_that_cannot_be_used_is_refused_by_name(pattern: str) -> None:
    with pytest.raises(ApiError) as refused:
        RegexCheck(pattern)
    assert (refused.value.status, refused.value.param) == (400, "pointsman.verify.regex")
    assert pattern not in refused.value.message


HOSTILE: list[tuple[Check, str]] = [
    (RegexCheck("^(a+)+$"), "a" * 250_000 + "b"),
    (RegexCheck("(.*)*(.*)*(.*)*x"), "a" * 250_000),
    (RegexCheck("(?:a?){200}a{200}"), "a" * 199 + "b" * 250_000),
    (JsonSchemaCheck({"items": {"pattern": "^(a+)+$"}}), '["' + "a" * 250_000 + 'b"]'),
    (JsonSchemaCheck({"uniqueItems": True}), "[" + "1," * 120_000 + "1]"),
    (JsonSchemaCheck({"uniqueItems": True}), "[" + ",".join(str(n) for n in range(30_000)) + "]"),
    (JsonSchemaCheck({"items": {"anyOf": [{"const": n} for n in range(400)]}}), "[" + "-1," * 200 + "-1]"),
    (JsonSchemaCheck({"type": "array"}), "[" * 100_000 + "]" * 100_000),
    (ExactCheck("x"), "\u0390" * 60_000),
]


@pytest.mark.parametrize(("check", "answer"), HOSTILE, ids=[f"{at}-{pair[0].name}" for at, pair in enumerate(HOSTILE)])
def test_no_answer_takes_long_to_judge(check: Check, answer: str) -> None:
    began = time.thread_time()
    check.judge(answer)
    assert time.thread_time() - began < 0.5


@pytest.mark.parametrize("check", [RegexCheck("x"), ExactCheck("x"), JsonSchemaCheck({})])
def test_an_answer_that_is_too_long_is_not_verified(check: Check) -> None:
    verdict = check.judge("x" * (MAX_ANSWER_BYTES + 1))
    assert not verdict.ok
    assert str(MAX_ANSWER_BYTES) in verdict.reason


def test_several_verdicts_are_one() -> None:
    yes, no = Verdict(True, "regex", "found"), Verdict(False, "exact", "not expected")
    sure = Verdict(True, "verifier", "yes", 0.8)
    assert all_of(()) is None
    assert all_of((yes, no, sure)) == no
    assert all_of((yes, sure)) == Verdict(True, "regex+verifier", "regex: found; verifier: yes", 0.8)
