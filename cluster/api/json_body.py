"""Strict parsing of request bodies.

Python's parser takes more than JSON (NaN, duplicate keys, numbers of any length) and works before it counts. Here the
shape of a body is bounded first, with a handful of passes that run in C, and only then is it parsed.
"""

from __future__ import annotations

import json
import math
import re
from typing import Final, NoReturn, TypeAlias

from cluster.api.errors import ApiError, bad_request
from cluster.config.ingress import LimitsConfig

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
JsonObject: TypeAlias = "dict[str, JsonValue]"

MAX_NUMBER_CHARS: Final = 64

# The closing quote is optional so that a string which never ends is one match: otherwise the search would start over
# at every quote inside it and take quadratic time.
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NOT_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")
_TO_SQUARE: Final = bytes.maketrans(b"{}", b"[]")
_SURROGATE_ESCAPE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


class _RefusedError(ValueError):
    """Raised inside the parser's hooks; carries the sentence for the caller."""


def parse_json(body: bytes, limits: LimitsConfig) -> JsonObject:
    """The JSON object in `body`.

    Raises `ApiError` 413 for a body over `body_bytes`, 400 for invalid UTF-8 or JSON, duplicate keys, NaN, infinities,
    numbers over 64 characters, lone surrogates, more than `json_depth` levels or `json_nodes` values.
    """
    if len(body) > limits.body_bytes:
        raise ApiError(
            413, "request_too_large", f"The body has {len(body)} bytes; at most {limits.body_bytes} are taken."
        )
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _malformed(f"The body is not valid UTF-8 (byte {error.start}).") from None
    _bound_shape(body, limits)
    try:
        parsed: JsonValue = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_number
        )
    except json.JSONDecodeError as error:
        raise _malformed(f"The body is not valid JSON (line {error.lineno}, column {error.colno}).") from None
    except _RefusedError as error:
        raise _malformed(str(error)) from None
    if not isinstance(parsed, dict):
        raise _malformed("The body must be a JSON object.")
    if _SURROGATE_ESCAPE.search(body):
        _refuse_lone_surrogates(parsed)
    return parsed


def _bound_shape(body: bytes, limits: LimitsConfig) -> None:
    # A value has four quotes at most, its own and those of its key. Escaped ones may be miscounted, in favour of the body.
    if body.count(b'"') - body.count(b'\\"') > 4 * limits.json_nodes:
        raise bad_request(
            None, f"The body has too many strings; at most {limits.json_nodes} values are taken.", "json_nodes"
        )
    outline = _STRING.sub(b"", body)
    brackets = outline.translate(_TO_SQUARE, _NOT_BRACKETS)
    # Every value but the first of its array or object follows a comma, so this counts no fewer values than there are.
    values = 1 + outline.count(b",") + brackets.count(b"[")
    if values > limits.json_nodes:
        raise bad_request(
            None, f"The body has about {values} values; at most {limits.json_nodes} are taken.", "json_nodes"
        )
    # Each pass takes the innermost level away, so the number of passes is the depth.
    for _ in range(limits.json_depth):
        inner = brackets.replace(b"[]", b"")
        if not inner:
            return
        if len(inner) == len(brackets):
            raise _malformed("The body is not valid JSON: its brackets do not match.")
        brackets = inner
    raise bad_request(
        None, f"The body is nested too deeply; at most {limits.json_depth} levels are taken.", "json_depth"
    )


def _object(pairs: list[tuple[str, JsonValue]]) -> JsonObject:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _RefusedError("An object in the body has the same key twice; every key may stand once.")
    return made


def _constant(_: str) -> NoReturn:
    raise _RefusedError("NaN and Infinity are not JSON; every number must be finite.")


def _integer(digits: str) -> int:
    if len(digits) > MAX_NUMBER_CHARS:
        raise _RefusedError(f"A number in the body has more than {MAX_NUMBER_CHARS} characters.")
    return int(digits)


def _number(digits: str) -> float:
    if len(digits) > MAX_NUMBER_CHARS:
        raise _RefusedError(f"A number in the body has more than {MAX_NUMBER_CHARS} characters.")
    number = float(digits)
    if not math.isfinite(number):
        raise _RefusedError("A number in the body is too large; every number must be finite.")
    return number


def _refuse_lone_surrogates(parsed: JsonValue) -> None:
    try:
        json.dumps(parsed, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise _malformed("A string in the body has half of a surrogate pair, which is not a character.") from None


def _malformed(message: str) -> ApiError:
    return ApiError(400, "invalid_json", message)
