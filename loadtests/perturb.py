"""Prompts that say the same in a slightly different way, made from a seed."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from typing import Final

_SYNONYMS: Final = {
    "what is": "what's",
    "please": "kindly",
    "give me": "show me",
    "write": "compose",
    "how do i": "how can I",
    "big": "large",
    "tell me": "explain to me",
    "make": "create",
    "find": "determine",
    "list": "enumerate",
}


def changed_case(text: str, source: random.Random) -> str:
    """All lower, all upper, or the first letter the other way."""
    return source.choice((text.lower(), text.upper(), text[:1].swapcase() + text[1:]))


def changed_spacing(text: str, source: random.Random) -> str:
    """Doubled spaces, space at the ends, or a line end in place of a space."""
    return source.choice((text.replace(" ", "  "), f"  {text}\n", text.replace(" ", "\n", 1)))


def changed_words(text: str, _source: random.Random) -> str:
    """Common words replaced by others of the same meaning; the same text if it holds none."""
    for word, other in _SYNONYMS.items():
        text = re.sub(rf"\b{word}\b", other, text, flags=re.IGNORECASE)
    return text


def changed_order(text: str, source: random.Random) -> str:
    """Sentences in another order; the same text if it is a single one."""
    sentences = re.split(r"(?<=[.!?])\s+", text)
    source.shuffle(sentences)
    return " ".join(sentences)


def changed_manners(text: str, source: random.Random) -> str:
    """A polite word in front or behind."""
    return source.choice((f"Please: {text}", f"{text} Thank you."))


PERTURBATIONS: Final[Mapping[str, Callable[[str, random.Random], str]]] = {
    "case": changed_case,
    "spacing": changed_spacing,
    "words": changed_words,
    "order": changed_order,
    "manners": changed_manners,
}
