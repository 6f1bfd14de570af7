"""Finds which of many patterns occur in a text, in time linear in the text and, for most, in a single pass (RE2).

Python's `re` tries every alternative at every word: milliseconds for a page, on the event loop, where this takes microseconds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import re2

_FOREIGN_LETTER: Final = re.compile(r"[^\W\x00-\x7f]")

_OPTIONS: Final = re2.Options()
_OPTIONS.log_errors = False


class Signs:
    """Patterns in RE2's syntax. Letters beyond ASCII count as letters, and as no particular ones. Raises `re2.error` for what it cannot compile."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._all_at_once = re2.Set.SearchSet(_OPTIONS)
        # Counted repetitions make a joint automaton large, and a set that grows too large finds nothing: these go alone.
        self._alone = [(at, re2.compile(pattern, _OPTIONS)) for at, pattern in enumerate(patterns) if "{" in pattern]
        self._together = [at for at, pattern in enumerate(patterns) if "{" not in pattern]
        for at in self._together:
            self._all_at_once.Add(patterns[at])
        self._all_at_once.Compile()

    def found(self, text: str) -> list[int]:
        """Which patterns occur in `text`, by their place in the list, in that order."""
        # What is no Unicode text (half a pair of surrogates) cannot be looked at, and is no sign of anything. Word boundaries
        # are those of ASCII, so a letter beyond it must not look like the end of a word.
        clean = text if text.isascii() else _FOREIGN_LETTER.sub("_", text.encode(errors="replace").decode())
        found = [self._together[at] for at in self._all_at_once.Match(clean) or ()]
        found += [at for at, pattern in self._alone if pattern.search(clean) is not None]
        return sorted(found)
