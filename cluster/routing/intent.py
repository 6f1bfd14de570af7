"""What a request is for, told by plain signs of its words: needs no model, and takes microseconds."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

from cluster.routing.code_like import THRESHOLD, code_score
from cluster.routing.reading import Reading


class Intent(StrEnum):
    """What a request is for."""

    CODE = "code"
    MATH = "math"
    FACTS = "facts"
    IDEATION = "ideation"
    REWRITE = "rewrite"
    SUMMARY = "summary"
    DATA = "data"
    SMALLTALK = "smalltalk"


_LOOKED_AT: Final = 1000
"""Characters looked at, at the start and at the end each, so that the cost does not grow with the prompt."""


def _words(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE)


# The first of the most specific signs decides among equals: what is asked for says more than what it is about.
_SIGNS: Final[tuple[tuple[Intent, int, re.Pattern[str]], ...]] = (
    (
        Intent.SUMMARY,
        3,
        _words(r"summari[sz]e|summary|tl;?dr|in (?:a|one|two|three) sentences?|key points?|main points?"),
    ),
    (Intent.SUMMARY, 2, _words(r"condense|shorten|boil .{0,40} down|gist|takeaways?|recap|abstract of|outline of")),
    (Intent.REWRITE, 3, _words(r"rewrite|rephrase|reword|paraphrase|proofread|translate|translation")),
    (
        Intent.REWRITE,
        2,
        _words(r"(?:correct|fix|improve) (?:the |my |this )?(?:grammar|spelling|wording|tone|sentence|email|text)"),
    ),
    (
        Intent.REWRITE,
        2,
        _words(r"more (?:formal|polite|concise|friendly|professional)|make (?:this|it) sound|in plain english"),
    ),
    (Intent.DATA, 3, _words(r"csv|json|yaml|xml|spreadsheet|rows?|columns?|data ?set|as a table")),
    (
        Intent.DATA,
        2,
        _words(r"extract|parse|list all the|fields?|convert .{0,40} (?:to|into) a (?:table|list)|group by|pivot"),
    ),
    (
        Intent.MATH,
        3,
        _words(
            r"calculate|compute|solve|equation|integral|derivative|probability|how many|how much is|percent(?:age)?"
        ),
    ),
    (Intent.MATH, 3, re.compile(r"\d\s{0,3}[-+*/^=\u00d7\u00f7]\s{0,3}\d")),
    (
        Intent.MATH,
        2,
        _words(r"sum of|product of|square root|average|mean of|median|area of|volume of|prime|factorial|divided by"),
    ),
    (Intent.IDEATION, 3, _words(r"brainstorm|ideas?|invent|imagine|come up with|suggest(?:ions)?|names? for|slogans?")),
    (
        Intent.IDEATION,
        3,
        _words(
            r"(?:write|tell|compose) (?:me )?(?:a|an) (?:short )?(?:story|poem|haiku|song|tale|joke|limerick|dialogue)"
        ),
    ),
    (Intent.IDEATION, 2, _words(r"creative|story|poem|what (?:could|might) (?:i|we)|ways (?:to|of)|plan a")),
    (
        Intent.FACTS,
        2,
        _words(
            r"(?:what|who|when|where|which) (?:is|was|are|were|did|does)|capital of|define|definition of|how (?:old|tall|far|long|big)"
        ),
    ),
    (Intent.FACTS, 1, _words(r"explain|why|what|who|when|where|which|how")),
    (
        Intent.SMALLTALK,
        3,
        re.compile(
            r"^\s*(?:hi|hello|hey|good (?:morning|evening|afternoon|night)|thanks?|thank you|bye|how are you)\b",
            re.IGNORECASE,
        ),
    ),
    (
        Intent.SMALLTALK,
        2,
        _words(
            r"how(?:'s| is) it going|what'?s up|nice to meet you|have a (?:nice|good) (?:day|one)|your (?:name|day)|are you (?:a|there|real|ok)"
        ),
    ),
)


def lexical_intent(text: str) -> Reading[str]:
    """The intent of a text; a missing one if no sign is found. Time is linear in a bounded part of the text."""
    seen = text if len(text) <= 2 * _LOOKED_AT else f"{text[:_LOOKED_AT]}\n{text[-_LOOKED_AT:]}"
    code = code_score(seen)
    if code >= THRESHOLD:
        return Reading(Intent.CODE.value, "lexical")
    weights: dict[Intent, int] = {}
    for intent, weight, sign in _SIGNS:
        if sign.search(seen):
            weights[intent] = weights.get(intent, 0) + weight
    if not weights:
        return Reading(None, "lexical")
    return Reading(max(weights, key=lambda intent: weights[intent]).value, "lexical")
