"""Bounds on a JSON schema that a caller sends, for tools and structured answers.

A schema is compiled into a grammar before the first token, so what a schema may ask for is bounded by more than its size:
large repeat counts and long patterns take minutes to compile, and references may point out of the body.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

from cluster.api.errors import bad_request
from cluster.api.fields import json_bytes
from cluster.api.json_body import JsonObject, JsonValue
from cluster.config.ingress import LimitsConfig

MAX_COUNT: Final = 4096
MAX_ENUM: Final = 1000
MAX_PATTERN_BYTES: Final = 512
MAX_PATTERN_REPEAT: Final = 256
MAX_DEPTH: Final = 20

_MORE_PROPERTIES: Final = ("additionalProperties", "patternProperties", "propertyNames")
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
    references: list[JsonObject] = []
    while pending:
        value, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise bad_request(path, f"`{path}` must be nested at most {MAX_DEPTH} levels deep.", "schema_too_deep")
        if isinstance(value, dict):
            _check_keywords(value, path)
            _check_room(value, path)
            references.append(value)
            pending.extend((inner, depth + 1) for inner in value.values() if isinstance(inner, dict | list))
        elif isinstance(value, list):
            pending.extend((inner, depth + 1) for inner in value if isinstance(inner, dict | list))
    _check_references(schema, references, path)
    return schema


def _check_references(schema: JsonObject, holders: list[JsonObject], path: str) -> None:
    """Refuses references to nothing, and those that lead back to themselves with nothing in between to generate."""
    ends: set[int] = set()
    for holder in holders:
        seen: set[int] = set()
        at: JsonValue = holder
        while isinstance(at, dict) and isinstance(reference := at.get("$ref"), str) and id(at) not in ends:
            if id(at) in seen:
                raise bad_request(path, f"A `$ref` in `{path}` leads back to itself.", "invalid_schema")
            seen.add(id(at))
            at = _target(schema, reference)
            if at is None:
                raise bad_request(path, f"A `$ref` in `{path}` points to nothing.", "invalid_schema")
        # Each is followed once: in long chains every holder would else walk the whole way again.
        ends |= seen


def _target(schema: JsonObject, reference: str) -> JsonValue:
    """What a JSON pointer (RFC 6901) in a reference points to; None if that is nothing. Names (`#name`) are not followed."""
    if reference != "#" and not reference.startswith("#/"):
        return True
    at: JsonValue = schema
    for step in unquote(reference).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(at, dict):
            at = at.get(name)
        elif isinstance(at, list) and name.isdecimal() and len(name) < 6 and int(name) < len(at):
            at = at[int(name)]
        else:
            return None
    return at


def _check_room(value: JsonObject, path: str) -> None:
    """Refuses lower bounds that what is described cannot meet: engines take what is not described for not allowed."""
    rooms = (("minItems", "prefixItems", ("items",)), ("minProperties", "properties", _MORE_PROPERTIES))
    for bound, listed, more in rooms:
        least, described = value.get(bound), value.get(listed)
        room = len(described) if isinstance(described, list | dict) else 0
        open_ended = any(value.get(keyword) not in (None, False) for keyword in more)
        if isinstance(least, int | float) and least > room and not open_ended:
            message = f"`{bound}` in `{path}` is more than is described: add `{more[0]}`."
            raise bad_request(path, message, "invalid_schema")


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
