"""Prompts and embedding inputs: one or many, as text or as token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cluster.api.errors import bad_request
from cluster.api.fields import Fields, byte_length
from cluster.api.json_body import JsonValue
from cluster.api.prompt_size import BYTES_PER_TOKEN, check_prompt_bytes
from cluster.api.sampling import MAX_TOKEN_ID
from cluster.config.ingress import LimitsConfig

_FORMS: Final = "a string, an array of strings, an array of token ids, or an array of these arrays"


@dataclass(frozen=True, slots=True)
class Inputs:
    """What stands in `prompt` or `input`."""

    count: int
    """Inputs (a count)."""
    text_bytes: int
    """Bytes of text in UTF-8; a token id counts as 4."""
    longest_bytes: int
    """The same of the longest input."""
    are_tokens: bool
    first_text: str
    """The first input, empty for token ids."""
    value: JsonValue


def read_inputs(fields: Fields, name: str, limits: LimitsConfig) -> Inputs:
    """The inputs in field `name`. Raises `ApiError` 400 naming field and limit."""
    value = fields.get(name)
    if value is None:
        raise bad_request(name, f"`{name}` is missing.", "missing_required_parameter")
    if isinstance(value, str):
        entries: list[JsonValue] = [value]
    elif isinstance(value, list) and value and all(_is_token(item) for item in value):
        entries = [value]
    else:
        entries = fields.array(name, limits.max_embedding_inputs, min_items=1) or []
    as_text = isinstance(entries[0], str)
    sizes = [_size(entry, name, as_text=as_text) for entry in entries]
    check_prompt_bytes(sum(sizes), limits.prompt_bytes, name)
    first = entries[0]
    return Inputs(len(entries), sum(sizes), max(sizes), not as_text, first if isinstance(first, str) else "", value)


def _size(entry: JsonValue, name: str, *, as_text: bool) -> int:
    if isinstance(entry, str) and as_text:
        size = byte_length(entry)
    elif isinstance(entry, list) and not as_text and all(_is_token(item) for item in entry):
        size = BYTES_PER_TOKEN * len(entry)
    else:
        raise bad_request(name, f"`{name}` must be {_FORMS}; token ids are 0 to {MAX_TOKEN_ID}.", "invalid_type")
    if not size:
        raise bad_request(name, f"`{name}` must not have empty items.")
    return size


def _is_token(value: JsonValue) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKEN_ID
