"""Whether requests that say the same go to the same model: what routing thrash is measured by, on live traffic."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from typing import Final

REMEMBERED: Final = 4096
"""Latest different requests that are known (a count), at about 100 bytes each."""
READ_CHARACTERS: Final = 2048
"""Of a text: its start and its length tell it from others, and reading more would hold up the event loop."""
SHORTEST_CHARACTERS: Final = 16
"""Shorter ones ("yes", "go on") say something else in each conversation."""


class Steadiness:
    """Remembers which model was chosen for which text, by digests: the texts themselves are not kept."""

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._chosen: OrderedDict[bytes, str] = OrderedDict()
        self._remembered = remembered

    def asked(self, wanted: str, text: str, model: str) -> bool | None:
        """`text` was asked of `wanted` (a role, `auto`) and goes to `model`; whether it did so the last time.

        None: it was not asked lately, or is too short to be told from others. Case, spaces and punctuation do not count.
        """
        start = "".join(character for character in text[:READ_CHARACTERS].casefold() if character.isalnum())
        if len(start) < SHORTEST_CHARACTERS:
            return None
        beyond = max(0, len(text) - READ_CHARACTERS)
        digest = blake2b(f"{wanted}\n{start}\n{beyond}".encode("utf-8", "replace"), digest_size=16).digest()
        before = self._chosen.pop(digest, None)
        self._chosen[digest] = model
        if len(self._chosen) > self._remembered:
            self._chosen.popitem(last=False)
        return None if before is None else before == model
