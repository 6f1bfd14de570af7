"""A pattern that an answer must contain.

Patterns come from callers, so they run on an engine without backtracking (Rust's `regex`, by way of `jsonschema_rs`): time
is linear in the answer whatever the pattern, and what a pattern compiles to is bounded. What such an engine cannot do
(look-around, back-references) is refused with the request.
"""

from __future__ import annotations

from typing import Final

import jsonschema_rs

from cluster.api.answer_knobs import MAX_PATTERN_BYTES
from cluster.api.errors import bad_request
from cluster.api.fields import byte_length
from cluster.verification.verdict import Verdict, too_long

NAME: Final = "regex"

PATTERN_OPTIONS: Final = jsonschema_rs.RegexOptions(size_limit=262_144, dfa_size_limit=1_048_576)
"""Bytes that a compiled pattern, and what is cached while it runs, may take."""


class RegexCheck:
    """Searches an answer for a pattern; `^` and `$` stand for its start and its end."""

    name = NAME

    def __init__(self, pattern: str, path: str = "pointsman.verify.regex") -> None:
        """Raises `ApiError` 400, naming `path`, for a pattern that is too long or cannot run in linear time."""
        if byte_length(pattern) > MAX_PATTERN_BYTES:
            raise bad_request(path, f"`{path}` must have at most {MAX_PATTERN_BYTES} bytes.", "string_too_long")
        try:
            self._validator = jsonschema_rs.Draft202012Validator({"pattern": pattern}, pattern_options=PATTERN_OPTIONS)
        except (ValueError, jsonschema_rs.ValidationError):
            message = (
                f"`{path}` is not a pattern that can be used: it must be a regular expression without look-around and "
                "back-references, and small repeat counts."
            )
            raise bad_request(path, message, "invalid_pattern") from None

    def judge(self, answer: str) -> Verdict:
        if (refused := too_long(NAME, answer)) is not None:
            return refused
        ok = self._validator.is_valid(answer)
        return Verdict(ok, NAME, "the pattern is found" if ok else "the pattern is not found")
