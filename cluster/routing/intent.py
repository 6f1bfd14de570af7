"""What a request is for, told by plain signs of its words: needs no model, and takes tens of microseconds."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from cluster.routing.code_like import THRESHOLD, code_score
from cluster.routing.reading import Reading
from cluster.routing.signs import Signs


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


def _words(pattern: str) -> str:
    return rf"(?i)\b(?:{pattern})\b"


# What is asked for (summarize, rewrite) says more than what it is about, so verbs weigh more than nouns.
_SIGNS: Final[tuple[tuple[Intent, int, str], ...]] = (
    (
        Intent.CODE,
        3,
        _words(r"refactor|debug|regex|dockerfile|makefile|decorator|memoi[sz]e|kubernetes|docker|git|pytest|linter?"),
    ),
    (
        Intent.CODE,
        3,
        _words(r"unit tests?|stack ?trace|async|await|callback|endpoint|mutex|compiler?|api|npm|pip|crash(?:es|ed)?"),
    ),
    (
        Intent.CODE,
        1,
        _words(
            r"function|class|method|script|snippet|variable|loop|pointer|commit|library|command line|interface|import|flask"
        ),
    ),
    (
        Intent.CODE,
        2,
        _words(r"python|javascript|typescript|java|rust|golang|haskell|bash|css|html|sql|c\+\+|in (?:c|r|go)"),
    ),
    (
        Intent.SUMMARY,
        4,
        _words(
            r"summari[sz]e|summary|tl;?dr|key points?|main points?|takeaways?|recap|gist|synopsis|minutes of|digest"
        ),
    ),
    (
        Intent.SUMMARY,
        3,
        _words(
            r"condense|shorten|boil .{0,40} down|abstract (?:of|for)|outline|overview|in a nutshell|highlights|bottom line"
        ),
    ),
    (
        Intent.SUMMARY,
        3,
        _words(
            r"compress|synthesi[sz]e|abridge|skim|sum up|short version|essence|essentials|reduce .{0,30} to \d+ words"
        ),
    ),
    (
        Intent.SUMMARY,
        2,
        _words(
            r"in (?:a|one|two|three) (?:single )?sentences?|briefly|conclusions?|main argument|what (?:matters|happens)"
        ),
    ),
    (
        Intent.REWRITE,
        4,
        _words(r"rewrite|rephrase|reword|paraphrase|proofread|translate|translation|in other words|say this"),
    ),
    (Intent.REWRITE, 3, _words(r"(?:correct|fix|improve|polish|edit|tidy) (?:up )?(?:the |my |this |all )?\w{0,12}")),
    (
        Intent.REWRITE,
        3,
        _words(
            r"(?:more|less|sound) (?:formal(?:ly)?|polite(?:ly)?|concise|friendly|professional|exciting|neutral|sincere|rude)"
        ),
    ),
    (
        Intent.REWRITE,
        3,
        _words(
            r"plain english|passive voice|past tense|first person|third person|gender-neutral|wording|grammar|spelling|typos|punctuation"
        ),
    ),
    (
        Intent.REWRITE,
        2,
        _words(
            r"make (?:this|it|my|the following)|turn (?:this|these|the)|change the tone|replace the|dialect|jargon|adapt this"
        ),
    ),
    (
        Intent.DATA,
        4,
        _words(
            r"csv|json|yaml|xml|spreadsheets?|rows?|columns?|data ?set|as a table|tables?|tab-separated|key-value|schema"
        ),
    ),
    (
        Intent.DATA,
        3,
        _words(
            r"extract|parse|pull (?:every|all|out)|transpose|merge|filter|sort|aggregate|normali[sz]e|reformat|interpolat\w+"
        ),
    ),
    (
        Intent.DATA,
        3,
        _words(
            r"outliers?|duplicates?|entries|records|group by|group these|pivot|timestamps?|frequency|time series|fields?|iso codes?"
        ),
    ),
    (Intent.DATA, 2, r"\w[;,]\w{1,20}[;,]\w|\w;\d|\{\s{0,4}\"\w"),
    (
        Intent.DATA,
        2,
        _words(
            r"count how often|these (?:two )?lists?|this list|the list|label each|classify|annotate|convert .{0,40} (?:to|into)|list all"
        ),
    ),
    (
        Intent.MATH,
        4,
        _words(
            r"calculate|compute|solve|equations?|integrals?|integrate|derivative|probability|determinant|polynomial|factorial"
        ),
    ),
    (
        Intent.MATH,
        4,
        r"\d\s{0,3}[-+*/^=\x{d7}\x{f7}]\s{0,3}\d|\d\s{1,3}(?:times|plus|minus|divided by|percent)\b|\b[a-z]\s?\^\s?\d",
    ),
    (
        Intent.MATH,
        3,
        _words(
            r"how many|how much|sum of|product of|square root|average|mean of|median|area of|volume of|prime|divisor|fraction|decimal"
        ),
    ),
    (
        Intent.MATH,
        3,
        _words(
            r"slope|hypotenuse|triangle|hexagon|simplify|prove|round|add up|percent(?:age)?|matrix|logarithm|log base|limit of|expected value"
        ),
    ),
    (Intent.MATH, 1, r"\d.{1,60}\d"),
    (
        Intent.IDEATION,
        4,
        _words(
            r"brainstorm|ideas?|invent|imagine|come up with|suggest(?:ions)?|propose|pitch|dream up|think (?:up|of)|make up|sketch"
        ),
    ),
    (
        Intent.IDEATION,
        4,
        _words(
            r"(?:write|tell me|tell|compose) (?:me )?(?:a|an|the) (?:\w{1,12} )?(?:story|poem|haiku|song|verse|tale|joke|limerick|dialogue|lullaby|fable)"
        ),
    ),
    (
        Intent.IDEATION,
        3,
        _words(
            r"names? for|slogans?|motto|title for|mascot|prompts for|themes?|plot twist|metaphors?|riddle|opening lines|concepts? for"
        ),
    ),
    (
        Intent.IDEATION,
        2,
        _words(r"creative|story|poem|what (?:could|might|would)|ways (?:to|of)|plan a|unusual|design a|unique"),
    ),
    (
        Intent.FACTS,
        2,
        _words(
            r"(?:what|who|when|where|which) (?:is|was|are|were|did|does|do|has|causes?|painted|wrote|discovered|composed)"
        ),
    ),
    (
        Intent.FACTS,
        2,
        _words(
            r"capital of|defin(?:e|ition of)|how (?:old|tall|far|long|big|does|do)|history of|stand for|in which year|largest|tallest"
        ),
    ),
    (Intent.FACTS, 1, _words(r"explain|why|what|who|when|where|which|how")),
    (
        Intent.SMALLTALK,
        4,
        r"(?i)^\s*(?:hi|hello|hey|good (?:morning|evening|afternoon|night)|thanks?|thank you|bye|goodbye|cheers|happy)\b",
    ),
    (
        Intent.SMALLTALK,
        3,
        _words(
            r"how(?:'s| is) it going|what'?s up|nice to meet|have a (?:nice|good)|your (?:name|day|favou?rite)|see you|bye|thank you"
        ),
    ),
    (
        Intent.SMALLTALK,
        3,
        _words(r"(?:are|do|did|can|have) you|you (?:are|made)|made you|made me|guess what|how are you|how was your"),
    ),
    (
        Intent.SMALLTALK,
        2,
        _words(
            r"i'm|i am|i feel|i had|i love|i just|my (?:sister|brother|day|dog|cat|mom|dad)|oh no|well|okay|sorry|awesome|lonely|bored"
        ),
    ),
)

_FINDER: Final = Signs([sign for _, _, sign in _SIGNS])


def lexical_intent(text: str) -> Reading[str]:
    """The intent of a text; a missing one if no sign is found. Time is linear in a bounded part of the text."""
    seen = text if len(text) <= 2 * _LOOKED_AT else f"{text[:_LOOKED_AT]}\n{text[-_LOOKED_AT:]}"
    if code_score(seen) >= THRESHOLD:
        return Reading(Intent.CODE.value, "lexical")
    weights: dict[Intent, int] = {}
    for at in _FINDER.found(seen):
        intent, weight, _ = _SIGNS[at]
        weights[intent] = weights.get(intent, 0) + weight
    if weights.get(Intent.CODE, 0) < THRESHOLD:
        # A single everyday word such as `class` or `function` says nothing.
        weights.pop(Intent.CODE, None)
    if not weights:
        return Reading(None, "lexical")
    # The first in the order above among equals.
    return Reading(max(weights, key=lambda intent: weights[intent]).value, "lexical")
