"""Bounds on a JSON schema that a caller sends, for tools and structured answers.

A schema is compiled into a grammar before the first token, so what a schema may ask for is bounded by more than its size:
large repeat counts and long patterns take minutes to compile, and references may point out of the body.
"""

from __future__ import annotations

import re
from typing import Final

from cluster.api.errors import bad_request
from cluster.api.fields import json_bytes
from cluster.api.json_body import JsonObject, JsonValue
from cluster.config.ingress import LimitsConfig

MAX_COUNT: Final = 4096
MAX_ENUM: Final = 1000
MAX_PATTERN_BYTES: Final = 512
MAX_PATTERN_REPEAT: Final = 256
MAX_DEPTH: Final = 20

_COUNTS: Final = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_REFERENCES: Final = ("$ref", "$dynamicRef", "$recursiveRef")
# A repeat count over MAX_PATTERN_REPEAT, found in one pass: a body can hold a hundred thousand small ones.
_LARGE: Final = r"0*(?:25[7-9]|2[6-9]\d|[3-9]\d\d|[1-9]\d{3,})"
_TOO_MANY: Final = re.compile(rf"\{{\s*(?:{_LARGE}\s*(?:,\s*\d*\s*)?|\d*\s*,\s*{_LARGE}\s*)\}}")


def check_schema(schema: JsonValue, path: str, limits: LimitsConfig) -> JsonObject:
    """The schema, which stands at `path`. Raises `ApiError` 400 if it is no object or past a bound."""
    if not isinstance(schema, dict):
        raise bad_request(path, f"`{path}` must be a JSON schema, an object.", "invalid_type")
    if json_bytes(schema) > limits.max_schema_bytes:
        raise bad_request(path, f"`{path}` must have at most {limits.max_schema_bytes} bytes.", "schema_too_large")
    pending: list[tuple[JsonValue, int]] = [(schema, 1)]
    while pending:
        value, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise bad_request(path, f"`{path}` must be nested at most {MAX_DEPTH} levels deep.", "schema_too_deep")
        if isinstance(value, dict):
            _check_keywords(value, path)
            pending.extend((inner, depth + 1) for inner in value.values() if isinstance(inner, dict | list))
        elif isinstance(value, list):
            pending.extend((inner, depth + 1) for inner in value if isinstance(inner, dict | list))
    return schema


def _check_keywords(value: JsonObject, path: str) -> None:
    for keyword in _COUNTS:
        count = value.get(keyword)
        if isinstance(count, int | float) and not 0 <= count <= MAX_COUNT:
            raise bad_request(path, f"`{keyword}` in `{path}` must be 0 to {MAX_COUNT}.")
    for keyword in _REFERENCES:
        reference = value.get(keyword)
        if isinstance(reference, str) and not reference.startswith("#"):
            raise bad_request(path, f"`{keyword}` in `{path}` must point into the schema itself (start with #).")
    listed = value.get("enum")
    if isinstance(listed, list) and len(listed) > MAX_ENUM:
        raise bad_request(path, f"`enum` in `{path}` must have at most {MAX_ENUM} items.")
    pattern = value.get("pattern")
    if isinstance(pattern, str):
        _check_pattern(pattern, path)
    patterns = value.get("patternProperties")
    for inner in patterns if isinstance(patterns, dict) else ():
        _check_pattern(inner, path)


def _check_pattern(pattern: str, path: str) -> None:
    if len(pattern) > MAX_PATTERN_BYTES:
        raise bad_request(path, f"A pattern in `{path}` must have at most {MAX_PATTERN_BYTES} characters.")
    if _TOO_MANY.search(pattern):
        raise bad_request(path, f"A pattern in `{path}` must repeat at most {MAX_PATTERN_REPEAT} times.")
