"""Special tokens that a user wrote are text, not control.

A chat template mixes its own control tokens (`<|im_start|>`) with what users wrote, and the tokenizer turns both into
control tokens: a user could end their turn and speak as the system. So special tokens in user strings are replaced by
pairs of private-use characters before the template sees them, and these pairs are encoded as the plain characters that
were written. The model reads exactly what the user typed, as text.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any, Protocol, cast

_ESCAPE = "\U000f0000"
"""First character of a pair. Users who write it themselves have it replaced by a pair, too, so no pair is ambiguous."""

_FIRST_CODE = 0xF0001
"""The second characters start here, in Unicode's supplementary private use area A."""

_MAX_SPECIALS = 0xFFFC


class FastTokenizer(Protocol):
    """What is used of a Hugging Face fast tokenizer."""

    def __call__(self, text: str, **kwargs: Any) -> Mapping[str, Any]: ...


class SpecialTokenGuard:
    """Replaces special tokens in user strings and encodes the replacements as plain text."""

    def __init__(self, tokenizer: Any) -> None:
        specials = sorted({str(token) for token in tokenizer.get_added_vocab()}, key=len, reverse=True)[:_MAX_SPECIALS]
        originals = [*specials, _ESCAPE] if specials else []
        plain = copy.deepcopy(getattr(tokenizer, "_tokenizer", None))
        if plain is not None:
            plain.encode_special_tokens = True
        self._pairs: dict[str, str] = {}
        self._originals: dict[str, str] = {}
        self._plain_ids: dict[str, list[int]] = {}
        for number, original in enumerate(originals):
            code = chr(_FIRST_CODE + number)
            self._pairs[original] = _ESCAPE + code
            self._originals[code] = original
            if plain is not None:
                ids = plain.encode(original, add_special_tokens=False).ids
            else:
                ids = tokenizer.encode(original, add_special_tokens=False, split_special_tokens=True)
            self._plain_ids[code] = list(ids)
        self._find_original = re.compile("|".join(map(re.escape, originals))) if originals else None
        self._find_pair = re.compile(f"{_ESCAPE}([{chr(_FIRST_CODE)}-{chr(_FIRST_CODE + max(len(originals) - 1, 0))}])")

    def neutralise(self, value: object) -> object:
        """The same JSON value with every special token inside its strings (keys too) replaced."""
        if self._find_original is None:
            return value
        if isinstance(value, str):
            if self._find_original.search(value) is None:
                return value
            return self._find_original.sub(lambda match: self._pairs[match.group()], value)
        if isinstance(value, list):
            return [self.neutralise(item) for item in value]
        if isinstance(value, dict):
            return {cast("str", self.neutralise(key)): self.neutralise(item) for key, item in value.items()}
        return value

    def holds_sentinel(self, text: str) -> bool:
        """Whether `text` needs `encode` instead of the tokenizer's own call."""
        return self._find_pair.search(text) is not None

    def encode(self, tokenizer: FastTokenizer, text: str, kwargs: Mapping[str, Any]) -> list[int]:
        """Token ids of a rendered prompt: its own control tokens as control, those of users as plain text."""
        ids: list[int] = []
        add_special = kwargs.get("add_special_tokens", True)
        for number, piece in enumerate(self._find_pair.split(text)):
            if number % 2:
                ids.extend(self._plain_ids[piece])
            elif piece or number == 0:
                # Only the start of the prompt may get the tokenizer's own prefix (a BOS token).
                ids.extend(tokenizer(piece, add_special_tokens=add_special and number == 0)["input_ids"])
        limit = kwargs.get("max_length") if kwargs.get("truncation") else None
        return ids if limit is None else ids[:limit]

    def restore(self, text: str) -> str:
        """What the user wrote, out of a neutralised string (for texts that are echoed back)."""
        return self._find_pair.sub(lambda match: self._originals[match.group(1)], text)
