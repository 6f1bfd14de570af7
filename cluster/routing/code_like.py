"""Whether a text looks like code or like a question about code, told by plain signs."""

from __future__ import annotations

from typing import Final

from cluster.routing.signs import Signs

THRESHOLD: Final = 2

_LOOKED_AT: Final = 2000
"""Characters looked at, at the start and at the end each, so that the cost does not grow with the prompt."""

_SIGNS: Final = (
    (2, r"```|~~~"),
    (2, r"(?m)^[ \t]*(?:async def|def|class)[ \t]+\w+.*:[ \t]*$"),
    (2, r"(?m)^[ \t]*(?:#include[ \t]*[<\"]|import[ \t]+[\w.]+[ \t]*;?$|from[ \t]+[\w.]+[ \t]+import\b)"),
    (
        2,
        r"\bfunction\s{0,4}\w{0,64}\s{0,4}\([^)\n]{0,200}\)\s{0,4}\{|=>\s{0,4}[{(]|\b(?:const|let|var)\s\w{1,64}\s?=",
    ),
    (2, r"\b(?:for|while|if|switch)\s?\([^\n]{0,120}\)\s{0,8}\{"),
    (2, r"\bSELECT\b[^;]{1,200}?\bFROM\b|\bINSERT INTO\b|\bCREATE TABLE\b"),
    (2, r"(?m)\bTraceback \(most recent call last\)|^[ \t]+at [\w.$]+\(.*:\d+\)"),
    (1, r"(?m)[;{}][ \t]*$"),
    (1, r"\b\w{1,64}\([^()\n]{0,200}\)[ \t]?[;.{]|\w\.\w{1,64}\(|::|->|!=|==|&&|\|\|"),
    (1, r"(?i)\b(?:python|javascript|typescript|rust|golang|c\+\+|java|sql|bash|regex|html|css)\b"),
    (
        1,
        r"(?i)\b(?:function|method|script|program|compiler?|debug|refactor|unit tests?|stack ?trace|code|snippet)\b",
    ),
)

_FINDER: Final = Signs([sign for _, sign in _SIGNS])


def code_score(text: str) -> int:
    """Sum of the weights of the signs found, 0 for prose."""
    seen = text if len(text) <= 2 * _LOOKED_AT else f"{text[:_LOOKED_AT]}\n{text[-_LOOKED_AT:]}"
    return sum(_SIGNS[at][0] for at in _FINDER.found(seen))


def code_like(text: str) -> bool:
    """Whether `text` looks like code or asks for it."""
    return code_score(text) >= THRESHOLD
