"""How much the routing of tokens to experts changes between contexts that are nearly the same, and how to make such."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import SequenceMatcher
from random import Random
from typing import Final

import numpy as np
import numpy.typing as npt

from cluster.experts.load import ExpertLog, ExpertShape

UNNAMED: Final = -1
"""Token id in the logs of engines that do not name tokens."""

_AT_ONCE: Final = 1024
"""Tokens that are compared at once, so that memory stays small."""

_OPENINGS: Final = ("Here is a request.", "Please read this.", "Take your time.", "The following is a task.")
_WORD: Final = re.compile(r"[^\W\d_]+")
_GAP: Final = re.compile(r"(?<=\S) (?=\S)")
_SENTENCE_ENDS: Final = ".!?"

_Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Stability:
    """Two logs compared, token by token and layer by layer."""

    aligned: int
    """Pairs of tokens that were compared."""
    by_position: bool
    """Whether tokens were paired by position, since a log names none: meaningful only up to the first difference."""
    tokens_a: int
    """In the first log."""
    tokens_b: int
    """In the second one."""
    score: float
    """Mean share of a token's top-k experts, 0 to 1, that stayed the same: 1 means that routing does not change, top-k by
    the number of experts is what chance leaves. 0 too if no tokens could be paired."""
    by_layer: npt.NDArray[np.float64]
    """The same for each layer, (layers,)."""
    changed: float
    """Share of the pairs of token and layer, 0 to 1, whose set of experts is not quite the same."""
    first_change: tuple[int, int] | None
    """The first of these: position in the first log, from 0, and layer; None: there is none."""


def compare(a: ExpertLog, b: ExpertLog, shape: ExpertShape) -> Stability:
    """The routing of the tokens that both logs have in common.

    Tokens are paired by their longest common blocks (Ratcliff and Obershelp's pattern matching, 1988, as in `difflib`), so
    that text which was put in between moves the rest, but changes nothing. Raises `ValueError` if a log is not of this shape.
    """
    by_position = UNNAMED in a.tokens or UNNAMED in b.tokens
    at_a, at_b = _by_position(a, b) if by_position else _by_tokens(a, b)
    overlap = _overlap(a.array(shape), b.array(shape), at_a, at_b)
    changes = np.argwhere(overlap < 1)
    first = (int(at_a[changes[0, 0]]), int(changes[0, 1])) if len(changes) else None
    return Stability(
        aligned=len(at_a),
        by_position=by_position,
        tokens_a=len(a.tokens),
        tokens_b=len(b.tokens),
        score=float(overlap.mean()) if len(at_a) else 0.0,
        by_layer=overlap.mean(axis=0) if len(at_a) else np.zeros(shape.layers),
        changed=len(changes) / overlap.size if len(at_a) else 1.0,
        first_change=first,
    )


def _by_position(a: ExpertLog, b: ExpertLog) -> tuple[_Indices, _Indices]:
    both = np.arange(min(len(a.tokens), len(b.tokens)))
    return both, both


def _by_tokens(a: ExpertLog, b: ExpertLog) -> tuple[_Indices, _Indices]:
    blocks = SequenceMatcher(None, a.tokens, b.tokens, autojunk=False).get_matching_blocks()
    at_a = np.concatenate([np.arange(block.a, block.a + block.size) for block in blocks])
    at_b = np.concatenate([np.arange(block.b, block.b + block.size) for block in blocks])
    return at_a, at_b


def _overlap(
    a: npt.NDArray[np.uint16], b: npt.NDArray[np.uint16], at_a: _Indices, at_b: _Indices
) -> npt.NDArray[np.float64]:
    """Share of the top-k experts that are the same, (pairs of tokens, layers)."""
    overlap = np.ones((len(at_a), a.shape[1]))
    for start in range(0, len(at_a), _AT_ONCE):
        one, other = a[at_a[start : start + _AT_ONCE]], b[at_b[start : start + _AT_ONCE]]
        same = (one[..., :, None] == other[..., None, :]).any(axis=-1)
        overlap[start : start + _AT_ONCE] = same.mean(axis=-1)
    return overlap


def perturbations(text: str, seed: int) -> tuple[tuple[str, str], ...]:
    """Names and texts of variants, at least two; which word or gap is changed follows from the seed.

    A variant that the text has no place for (a typo in a text without words) is left out. None is empty, none is the text.
    """
    random = Random(seed)
    made = ((name, change(text, random)) for name, change in _CHANGES.items())
    return tuple((name, variant) for name, variant in made if variant not in ("", text))


def _trailing_space(text: str, _: Random) -> str:
    return text + " "


def _double_space(text: str, random: Random) -> str:
    gaps = [gap.start() for gap in _GAP.finditer(text)]
    if not gaps:
        return text
    at = random.choice(gaps)
    return f"{text[:at]} {text[at:]}"


def _punctuation(text: str, _: Random) -> str:
    """One mark at the end more or less."""
    return text[:-1] if text.endswith(tuple(_SENTENCE_ENDS)) and len(text) > 1 else text + "."


def _letter_case(text: str, _: Random) -> str:
    """Of the first letter of the first word."""
    word = _WORD.search(text)
    if word is None:
        return text
    at = word.start()
    return text[:at] + text[at].swapcase() + text[at + 1 :]


def _typo(text: str, random: Random) -> str:
    """Two neighbouring letters inside a word change places."""
    places = [
        at
        for word in _WORD.finditer(text)
        for at in range(word.start() + 1, word.end() - 2)
        if text[at] != text[at + 1]
    ]
    if not places:
        return text
    at = random.choice(places)
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


def _leading_sentence(text: str, random: Random) -> str:
    return f"{random.choice(_OPENINGS)} {text}"


def _line_breaks(text: str, _: Random) -> str:
    """The other style of line breaks; a text of one line gets one at its end."""
    if "\r\n" in text:
        return text.replace("\r\n", "\n")
    return text.replace("\n", "\r\n") if "\n" in text else text + "\n"


_CHANGES: Final[dict[str, Callable[[str, Random], str]]] = {
    "trailing space": _trailing_space,
    "double space": _double_space,
    "punctuation": _punctuation,
    "letter case": _letter_case,
    "typo": _typo,
    "leading sentence": _leading_sentence,
    "line breaks": _line_breaks,
}
