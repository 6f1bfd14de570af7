"""How large a prompt is, before anything is tokenized."""

from __future__ import annotations

from typing import Final

from cluster.api.errors import ApiError

BYTES_PER_TOKEN: Final = 4
"""Byte-pair vocabularies of today's models average 3.5 to 4.5 bytes a token on English prose, fewer on code and on other
languages. Good enough to choose a route or to reserve a budget; a bound it is not."""

MAX_BYTES_PER_TOKEN: Final = 8
"""No natural text averages more: longer tokens are rare words and runs of one character. A prompt with more bytes than
this times a token limit is over the limit for all practical purposes, and is refused without being tokenized."""


def estimate_tokens(text_bytes: int, turns: int = 0) -> int:
    """About how many tokens `text_bytes` bytes of text in `turns` messages make, the chat template's own included."""
    return -(-text_bytes // BYTES_PER_TOKEN) + 4 * turns


def fewest_tokens(text_bytes: int) -> int:
    """How many tokens `text_bytes` bytes of text have at least, except for texts made to mislead this estimate."""
    return text_bytes // MAX_BYTES_PER_TOKEN


def check_prompt_bytes(text_bytes: int, limit: int, param: str) -> None:
    """Raises `ApiError` 400 if a prompt of `text_bytes` bytes is over `limit`."""
    if text_bytes > limit:
        message = f"The text of `{param}` has {text_bytes} bytes; at most {limit} are taken."
        raise ApiError(400, "context_length_exceeded", message, param=param)


def prompt_too_long(tokens: int, limit: int) -> ApiError:
    """The 400 for a prompt of `tokens` tokens, as counted by the model's tokenizer, where `limit` are allowed."""
    message = f"The prompt has {tokens} tokens; its contract takes at most {limit} tokens. Shorten it."
    return ApiError(400, "context_length_exceeded", message)
