"""The knobs about answers: what they are checked against, and the passages that they can rest on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cluster.api.errors import bad_request
from cluster.api.fields import Fields, as_object, json_bytes, required
from cluster.api.json_body import JsonObject

MAX_PASSAGES: Final = 32
MAX_PASSAGE_BYTES: Final = 8192
MAX_ID_BYTES: Final = 128
MAX_EXPECTED_BYTES: Final = 65_536
MAX_PATTERN_BYTES: Final = 1024
MAX_SCHEMA_BYTES: Final = 32_768


@dataclass(frozen=True, slots=True)
class Passage:
    """A retrieved passage that an answer may rest on."""

    id: str
    text: str = field(repr=False)
    score: float | None = None
    """How well it fits, as the retriever says, 0 to 1; None: not said."""


@dataclass(frozen=True, slots=True)
class Verify:
    """What an answer is checked against before it leaves."""

    json_schema: JsonObject | None = field(default=None, repr=False)
    regex: str | None = field(default=None, repr=False)
    exact: str | None = field(default=None, repr=False)
    verifier: bool = False
    """Whether the verifier model is asked if the answer is right."""


def read_verify(knobs: Fields) -> Verify | None:
    """The knob `verify`. Raises `ApiError` 400 naming field and limit; what a pattern or a schema means is checked later."""
    fields = knobs.object("verify")
    if fields is None:
        return None
    fields.allow(("json_schema", "regex", "exact", "verifier"))
    schema = fields.object("json_schema")
    verify = Verify(
        json_schema=None if schema is None else schema.raw(),
        regex=fields.string("regex", MAX_PATTERN_BYTES, empty=False),
        exact=fields.string("exact", MAX_EXPECTED_BYTES),
        verifier=fields.boolean("verifier") or False,
    )
    if verify.json_schema is not None and json_bytes(verify.json_schema) > MAX_SCHEMA_BYTES:
        path = fields.at("json_schema")
        raise bad_request(path, f"`{path}` must have at most {MAX_SCHEMA_BYTES} bytes.", "schema_too_large")
    if verify == Verify():
        path = knobs.at("verify")
        raise bad_request(path, f"`{path}` checks nothing: give it `json_schema`, `regex`, `exact` or `verifier`.")
    return verify


def read_passages(knobs: Fields) -> tuple[Passage, ...]:
    """The knob `passages`. Raises `ApiError` 400 naming field and limit."""
    path = knobs.at("passages")
    passages = []
    for item in knobs.array("passages", MAX_PASSAGES) or ():
        fields = as_object(item, path)
        fields.allow(("id", "text", "score"))
        passages.append(
            Passage(
                id=required(fields.string("id", MAX_ID_BYTES, empty=False), f"{path}.id"),
                text=required(fields.string("text", MAX_PASSAGE_BYTES), f"{path}.text"),
                score=fields.number("score", 0, 1),
            )
        )
    if len({passage.id for passage in passages}) < len(passages):
        raise bad_request(path, f"`{path}` has the same `id` twice; each passage needs one of its own.")
    return tuple(passages)
