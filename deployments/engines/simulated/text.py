"""Synthetic text: prompts to tokens without a tokenizer, and generated tokens to words that nobody takes for an answer."""

from __future__ import annotations

import re
from typing import Final

from deployments.engines.simulated.sequence import VOCABULARY

_BYTES_PER_TOKEN: Final = 4
_WORD: Final = re.compile(r" ?sim(\d{4})(?!\d)")


def tokens_of(text: str) -> list[int]:
    """Tokens of a prompt: four UTF-8 bytes each, about what a real tokenizer makes of English.

    Words that this engine wrote become the tokens they were, so that the next turn of a chat finds them in the prefix
    cache.
    """
    tokens: list[int] = []
    end = 0
    for word in _WORD.finditer(text):
        tokens += _plain(text[end : word.start()])
        tokens.append(int(word[1]))
        end = word.end()
    return tokens + _plain(text[end:])


def word_of(token: int, *, first: bool) -> str:
    """The text of a generated token."""
    return f"{'' if first else ' '}sim{token:04d}"


def _plain(text: str) -> list[int]:
    data = text.encode("utf-8", "surrogatepass")
    return [
        VOCABULARY + int.from_bytes(data[start : start + _BYTES_PER_TOKEN], "big")
        for start in range(0, len(data), _BYTES_PER_TOKEN)
    ]


class Answer:
    """The text of one choice as it grows, held back where a stop sequence may have begun."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self.stopped = False
        self._stop = stop
        self._hold = max((len(item) for item in stop), default=1) - 1
        self._held = ""

    def push(self, piece: str) -> str:
        """Add text; returns what may be shown now. After a stop sequence was found, nothing more is."""
        text = self._held + piece
        found = min((at for item in self._stop if (at := text.find(item)) >= 0), default=-1)
        if found >= 0:
            self.stopped = True
            self._held = ""
            return text[:found]
        shown = len(text) - min(self._hold, len(text))
        self._held = text[shown:]
        return text[:shown]

    def rest(self) -> str:
        """What was held back, once it is certain that no more comes."""
        text, self._held = self._held, ""
        return text
