"""The load of the burst scenario: short requests in an open loop, mixed at first, then of one kind, then of another.

The same seed gives the same requests at the same times, whatever becomes of them: both arms of a round get the same load.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from loadtests.questions import items

MAX_REQUESTS: Final = 20_000
CONCENTRATION: Final = 0.9
"""Share of a surge's requests that are of its kind."""
QUESTIONS: Final = 500
"""Different questions of a series; they come in turn."""

_WORK: Final = (
    "merges",
    "sorts",
    "filters",
    "counts",
    "splits",
    "groups",
    "validates",
    "compares",
    "rotates",
    "flattens",
)
_THINGS: Final = (
    "two sorted lists", "rows of a CSV file", "nested dictionaries", "words of a string", "intervals", "linked lists",
    "matrices", "log lines", "binary trees", "ISO dates", "file paths", "a queue of tasks",
)  # fmt: skip
_LANGUAGES: Final = ("Python", "Rust", "Java", "C++", "Go", "TypeScript")
_HEROES: Final = (
    "baker",
    "clockmaker",
    "lighthouse keeper",
    "gardener",
    "young astronomer",
    "ship's cook",
    "librarian",
)
_PLACES: Final = ("an old castle", "the far north", "a desert town", "a city of canals", "a floating island")
_EVENTS: Final = (
    "finds a map", "hears a bell under water", "loses a key", "meets a stranger", "learns to speak with birds",
    "follows a light", "discovers a room without doors", "repairs a machine that remembers",
)  # fmt: skip


class Kind(StrEnum):
    """What a text is about."""

    CODE = "code"
    STORY = "story"
    QUESTION = "question"


@dataclass(frozen=True, slots=True)
class Phase:
    """Traffic for a time."""

    name: str
    seconds: float
    kind: Kind | None = None
    """That nearly all requests of a surge are of; None: calm, all kinds alike."""

    @property
    def surge(self) -> bool:
        """Whether the rate is that of a surge."""
        return self.kind is not None


@dataclass(frozen=True, slots=True)
class Phases:
    """One run: calm, a surge of code, a surge of stories, calm. Seconds."""

    before_s: float = 20.0
    code_s: float = 45.0
    stories_s: float = 45.0
    after_s: float = 40.0
    calm_share: float = 0.3
    """Rate while it is calm, as a share of a surge's."""

    @property
    def all(self) -> tuple[Phase, ...]:
        """In their order."""
        return (
            Phase("calm before", self.before_s),
            Phase("surge of code", self.code_s, Kind.CODE),
            Phase("surge of stories", self.stories_s, Kind.STORY),
            Phase("calm after", self.after_s),
        )

    @property
    def seconds(self) -> float:
        """Of all of them."""
        return sum(phase.seconds for phase in self.all)

    def starts(self) -> tuple[float, ...]:
        """When each begins, seconds after the run's beginning."""
        found, at_s = [], 0.0
        for phase in self.all:
            found.append(at_s)
            at_s += phase.seconds
        return tuple(found)

    def at(self, at_s: float) -> Phase:
        """The phase at a time; past the end the last one."""
        for phase, start in zip(reversed(self.all), reversed(self.starts()), strict=True):
            if at_s >= start:
                return phase
        return self.all[0]


@dataclass(frozen=True, slots=True)
class Request:
    """One request."""

    number: int
    at_s: float
    """Seconds after the run's beginning."""
    kind: Kind
    prompt: str
    max_tokens: int

    def body(self, model: str) -> dict[str, object]:
        """What is sent: a plain completion of exactly `max_tokens` tokens."""
        return {
            "model": model,
            "prompt": self.prompt,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }


class Texts:
    """Prompts of a series, about ten to twenty tokens each; no two begin alike, so that a prefix cache finds nothing."""

    def __init__(self, seed: int) -> None:
        self._source = random.Random(f"texts:{seed}")
        self._questions = [item.question for item in items(QUESTIONS, seed)]
        self._made = 0

    def next(self, kind: Kind) -> str:
        """One more text of a kind."""
        self._made += 1
        choose, number = self._source.choice, self._source.randrange(10**4)
        if kind is Kind.CODE:
            return f"{number}. Write a {choose(_LANGUAGES)} function that {choose(_WORK)} {choose(_THINGS)}."
        if kind is Kind.STORY:
            return f"{number}. A story of a {choose(_HEROES)} in {choose(_PLACES)} who {choose(_EVENTS)}."
        return f"{number}. {self._questions[self._made % QUESTIONS]}"


def requests_of(seed: int, per_s: float, phases: Phases, max_tokens: int) -> tuple[Request, ...]:
    """All requests of a run in the order of their times: Poisson arrivals, `per_s` a second in a surge.

    Raises `ValueError` for more than `MAX_REQUESTS`.
    """
    if per_s * phases.seconds > MAX_REQUESTS:
        raise ValueError(
            f"about {per_s * phases.seconds:.0f} requests are more than {MAX_REQUESTS}: shorten the phases"
        )
    source, texts = random.Random(f"burst:{seed}"), Texts(seed)
    found: list[Request] = []
    for phase, start in zip(phases.all, phases.starts(), strict=True):
        rate = per_s if phase.surge else per_s * phases.calm_share
        at_s = start
        while (at_s := at_s + source.expovariate(rate)) < start + phase.seconds:
            kind = _kind(source, phase)
            found.append(Request(len(found), at_s, kind, texts.next(kind), max_tokens))
    return tuple(found)


def saturating(seed: int, count: int, max_tokens: int) -> tuple[Request, ...]:
    """Requests without times, of the kinds of both surges in turn: to see how many can be served."""
    texts = Texts(seed)
    kinds: Sequence[Kind] = (Kind.CODE, Kind.STORY)
    return tuple(
        Request(number, 0.0, kinds[number % 2], texts.next(kinds[number % 2]), max_tokens) for number in range(count)
    )


def _kind(source: random.Random, phase: Phase) -> Kind:
    if phase.kind is None:
        return source.choice(tuple(Kind))
    if source.random() < CONCENTRATION:
        return phase.kind
    return source.choice([kind for kind in Kind if kind is not phase.kind])
