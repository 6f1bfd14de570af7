"""A JSON schema that an answer must meet.

Both sides of the comparison come from others: the schema from a caller, the answer from a model that the caller can make
say anything. A validator holds the interpreter while it works, so its work is bounded beforehand: by what the schema comes
to with its references written out, times the values of the answer. Patterns run in linear time (see `regex`).
"""

from __future__ import annotations

import json
from typing import Final, NoReturn

import jsonschema_rs

from cluster.api.answer_knobs import MAX_SCHEMA_BYTES
from cluster.api.errors import bad_request
from cluster.api.fields import json_bytes
from cluster.api.json_body import JsonObject, JsonValue
from cluster.verification.regex import PATTERN_OPTIONS
from cluster.verification.schema_size import SchemaTooLargeError, schema_nodes
from cluster.verification.verdict import Verdict, too_long

NAME: Final = "json_schema"
MAX_WORK: Final = 200_000
"""Schema nodes times values of an answer: some ten milliseconds of work."""
MAX_DEPTH: Final = 64
"""Levels of an answer."""


class _NotJsonError(ValueError):
    """Raised inside the parser's hooks for what Python's parser takes and JSON does not have."""


class JsonSchemaCheck:
    """Validates an answer, which must be JSON and nothing else, against a schema (the draft that it names, else 2020-12)."""

    name = NAME

    def __init__(self, schema: JsonObject, path: str = "pointsman.verify.json_schema") -> None:
        """Raises `ApiError` 400, naming `path`, for a schema that is not one, or could take long to validate with."""
        if json_bytes(schema) > MAX_SCHEMA_BYTES:
            raise bad_request(path, f"`{path}` must have at most {MAX_SCHEMA_BYTES} bytes.", "schema_too_large")
        try:
            self._nodes = schema_nodes(schema)
        except SchemaTooLargeError as error:
            raise bad_request(path, f"`{path}` {error}.", "schema_too_large") from None
        try:
            self._validator = jsonschema_rs.validator_for(schema, pattern_options=PATTERN_OPTIONS, offline=True)
        except (ValueError, jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError):
            message = f"`{path}` is not a valid JSON schema, or has a pattern with look-around or back-references."
            raise bad_request(path, message, "invalid_schema") from None

    def judge(self, answer: str) -> Verdict:
        if (refused := too_long(NAME, answer)) is not None:
            return refused
        try:
            value: JsonValue = json.loads(answer, parse_constant=_constant)
        except (ValueError, RecursionError):
            return Verdict(False, NAME, "the answer is not JSON")
        values, depth = _shape(value)
        if depth > MAX_DEPTH or values * self._nodes > MAX_WORK:
            return Verdict(
                False, NAME, f"an answer of {values} values is too large for a schema of {self._nodes} parts"
            )
        ok = self._validator.is_valid(value)
        return Verdict(ok, NAME, "the answer meets the schema" if ok else "the answer does not meet the schema")


def _constant(_: str) -> NoReturn:
    raise _NotJsonError


def _shape(value: JsonValue) -> tuple[int, int]:
    """Values in `value`, itself included, and its levels."""
    count, depth, level = 0, 0, [value]
    while level:
        count += len(level)
        depth += 1
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return count, depth
