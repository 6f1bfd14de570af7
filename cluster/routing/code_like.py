"""Whether a text looks like code or like a question about code, told by plain signs."""

from __future__ import annotations

import re
from typing import Final

THRESHOLD: Final = 2

_LOOKED_AT: Final = 2000
"""Characters looked at, at the start and at the end each, so that the cost does not grow with the prompt."""

# Every repetition that could run over the whole text is bounded or kept within a line: time stays linear.
_SIGNS: Final = (
    (2, re.compile(r"```|~~~")),
    (2, re.compile(r"^[ \t]*(?:async def|def|class)[ \t]+\w+.*:[ \t]*$", re.MULTILINE)),
    (
        2,
        re.compile(
            r"^[ \t]*(?:#include[ \t]*[<\"]|import[ \t]+[\w.]+[ \t]*;?$|from[ \t]+[\w.]+[ \t]+import\b)", re.MULTILINE
        ),
    ),
    (
        2,
        re.compile(
            r"\bfunction\s{0,4}\w{0,64}\s{0,4}\([^)\n]{0,200}\)\s{0,4}\{|=>\s{0,4}[{(]|\b(?:const|let|var)\s\w{1,64}\s?="
        ),
    ),
    (2, re.compile(r"\b(?:for|while|if|switch)\s?\([^\n]{0,120}\)\s{0,8}\{")),
    (2, re.compile(r"\bSELECT\b[^;]{1,200}?\bFROM\b|\bINSERT INTO\b|\bCREATE TABLE\b")),
    (2, re.compile(r"\bTraceback \(most recent call last\)|^[ \t]+at [\w.$]+\(.*:\d+\)", re.MULTILINE)),
    (1, re.compile(r"[;{}][ \t]*$", re.MULTILINE)),
    (1, re.compile(r"\b\w{1,64}\([^()\n]{0,200}\)[ \t]?[;.{]|\w\.\w{1,64}\(|::|->|!=|==|&&|\|\|")),
    (
        1,
        re.compile(
            r"\b(?:python|javascript|typescript|rust|golang|c\+\+|java|sql|bash|regex|html|css)\b", re.IGNORECASE
        ),
    ),
    (
        1,
        re.compile(
            r"\b(?:function|method|script|program|compiler?|debug|refactor|unit tests?|stack ?trace|code|snippet)\b",
            re.IGNORECASE,
        ),
    ),
)


def code_score(text: str) -> int:
    """Sum of the weights of the signs found, 0 for prose."""
    seen = text if len(text) <= 2 * _LOOKED_AT else f"{text[:_LOOKED_AT]}\n{text[-_LOOKED_AT:]}"
    return sum(weight for weight, sign in _SIGNS if sign.search(seen))


def code_like(text: str) -> bool:
    """Whether `text` looks like code or asks for it."""
    return code_score(text) >= THRESHOLD
