"""The load of the pressure scenario: sessions that grow, in an open loop that asks for more KV memory than there is.

The same seed gives the same requests at the same times, whatever becomes of them: the arms of a comparison get the same load.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Final

from cluster.config.engine import SimulatedConfig
from cluster.routing.latency_class import LatencyClass
from loadtests.prompts import story_prompt

MAX_REQUESTS: Final = 5_000
MAX_SECONDS: Final = 1_800.0

CHARACTERS_PER_TOKEN: Final = 4.15
"""Of the sentences that prompts are made of, in SmolLM2's vocabulary."""
FIRST_TOKENS: Final = (250, 380)
"""Prompt of a session's first turn, tokens."""
MORE_TOKENS: Final = (110, 210)
"""Tokens by which each further turn is longer: an answer, and what is asked next."""
LONGEST_TOKENS: Final = 700
THINK_S: Final = 6.0
"""Seconds between two turns of a session at least. The next one comes whatever became of the last: an open loop does not wait."""
CRITICAL_SHARE: Final = 0.08
CLUMP: Final = (1, 2, 3)
"""Requests that come at once, one of these numbers: load is not smooth."""


@dataclass(frozen=True, slots=True)
class ClassTerms:
    """What callers of one latency class send and expect."""

    share: float
    """Of the sessions, 0 to 1."""
    max_tokens: tuple[int, int]
    total_s: float
    """Seconds within which the answer must be whole."""
    ttft_s: float | None = None
    """Seconds within which it must begin; None: only the end counts."""


# Chosen before anything was measured. A person waits a few seconds for the first word and reads about ten words a second.
CLASSES: Final = {
    LatencyClass.INTERACTIVE: ClassTerms(0.4, (100, 140), 20.0, 3.0),
    LatencyClass.STANDARD: ClassTerms(0.35, (110, 170), 30.0),
    LatencyClass.BATCH: ClassTerms(0.25, (150, 200), 60.0),
}


@dataclass(frozen=True, slots=True)
class Phases:
    """How long each part of a run takes, seconds, and how much is asked for in it."""

    warm_up_s: float = 12.0
    surge_s: float = 70.0
    tail_s: float = 24.0
    calm_share: float = 0.1
    """Rate before and after the surge, as a share of the surge's."""
    ramp_s: float = 6.0
    """Seconds, the surge's first, in which the rate rises to its full."""

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= MAX_SECONDS:
            raise ValueError(f"a run may take up to {MAX_SECONDS:g} s")

    @property
    def seconds(self) -> float:
        """Of all parts."""
        return self.warm_up_s + self.surge_s + self.tail_s

    def share(self, at_s: float) -> float:
        """Rate at a time, as a share of the surge's full one."""
        since = at_s - self.warm_up_s
        if not 0 <= since < self.surge_s:
            return self.calm_share
        return min(1.0, self.calm_share + (1 - self.calm_share) * since / self.ramp_s) if self.ramp_s else 1.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One request."""

    number: int
    at_s: float
    """Seconds after the run's beginning."""
    session: int
    turn: int
    """Of its session, from 0."""
    latency_class: LatencyClass
    critical: bool
    messages: tuple[tuple[str, str], ...]
    """Role and text."""
    max_tokens: int

    @property
    def prompt_tokens(self) -> int:
        """About how many."""
        return round(sum(len(text) for _, text in self.messages) / CHARACTERS_PER_TOKEN)

    def body(self, model: str) -> dict[str, object]:
        """What is sent: a stream of exactly `max_tokens` tokens, unless the ladder makes it shorter."""
        knobs: dict[str, object] = {"latency_class": self.latency_class.value}
        if self.critical:
            knobs["business_critical"] = True
        return {
            "model": model,
            "messages": [{"role": role, "content": text} for role, text in self.messages],
            "max_tokens": self.max_tokens,
            # Routing holds what is critical to deterministic sampling, and refuses another temperature.
            "temperature": 0.0 if self.critical else 0.7,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "pointsman": knobs,
        }


@dataclass(frozen=True, slots=True)
class Shape:
    """Mean request of a workload, tokens."""

    prompt: float
    completion: float

    def held(self, block_tokens: int) -> float:
        """Tokens of KV memory that it holds on average: half of its answer is there, and half of its last block is empty."""
        return self.prompt + self.completion / 2 + block_tokens / 2


def requests_for(times: float, pool_tokens: int, block_tokens: int, shape: Shape) -> float:
    """Requests at work at once that need `times` the pool."""
    return times * pool_tokens / shape.held(block_tokens)


def rate_for(requests: float, shape: Shape, speed: SimulatedConfig) -> float:
    """Requests per second at which an engine with memory for all would have so many at work.

    By Little's law, `requests = rate * seconds`. A request takes its own prompt and the steps of its answer, and the prompts of
    the others that come meanwhile stop it:
    `seconds = (prompt_s + completion * step_s) / (1 - rate * prompt_s)`.
    """
    prompt_s = shape.prompt / speed.prefill_tokens_per_s
    step_s = speed.decode_step_base_s + requests * speed.decode_step_per_seq_s
    return requests / (shape.completion * step_s + prompt_s * (1 + requests))


def mean_shape(seed: int = 0, sessions: int = 400) -> Shape:
    """The mean request, from many sessions."""
    source = random.Random(f"shape:{seed}")
    sizes = [size for _ in range(sessions) for size in _sizes(source)]
    completion = sum(terms.share * sum(terms.max_tokens) / 2 for terms in CLASSES.values())
    return Shape(sum(sizes) / len(sizes), completion)


def workload(seed: int, rate_per_s: float, phases: Phases) -> tuple[Turn, ...]:
    """All requests of a run, in the order of their times. Raises `ValueError` for more than `MAX_REQUESTS`."""
    source = random.Random(f"pressure:{seed}")
    waiting: list[_Session] = []
    turns: list[Turn] = []
    began = 0
    for at_s in _arrivals(source, rate_per_s, phases):
        if len(turns) == MAX_REQUESTS:
            raise ValueError(f"more than {MAX_REQUESTS} requests: ask for a lower rate or a shorter run")
        due = next((one for one in waiting if at_s - one.last_s >= THINK_S), None)
        if due is None:
            due = _Session(seed, began, source)
            waiting.append(due)
            began += 1
        turns.append(due.next(len(turns), at_s, source))
        if due.is_over:
            waiting.remove(due)
    return tuple(turns)


def _arrivals(source: random.Random, rate_per_s: float, phases: Phases) -> list[float]:
    """A Poisson process of clumps whose rate follows the phases (thinning: Lewis, Shedler 1979)."""
    clumps_per_s = rate_per_s / (sum(CLUMP) / len(CLUMP))
    times: list[float] = []
    at_s = 0.0
    while (at_s := at_s + source.expovariate(clumps_per_s)) < phases.seconds:
        if source.random() < phases.share(at_s):
            times.extend([at_s] * source.choice(CLUMP))
    return times


def _sizes(source: random.Random) -> list[int]:
    """Tokens of the prompts of one session, turn by turn."""
    sizes = [source.randint(*FIRST_TOKENS)]
    while (size := sizes[-1] + source.randint(*MORE_TOKENS)) <= LONGEST_TOKENS:
        sizes.append(size)
    return sizes


class _Session:
    """A conversation; each turn carries those before it. The answers in it are scripted, as arms answer differently."""

    def __init__(self, seed: int, number: int, source: random.Random) -> None:
        self.last_s = -math.inf
        self._number = number
        self._sizes = _sizes(source)
        self._text = _Text(seed, number)
        self._class = source.choices(tuple(CLASSES), [terms.share for terms in CLASSES.values()])[0]
        self._critical = source.random() < CRITICAL_SHARE
        self._messages: list[tuple[str, str]] = []
        self._turn = 0

    @property
    def is_over(self) -> bool:
        return self._turn == len(self._sizes)

    def next(self, number: int, at_s: float, source: random.Random) -> Turn:
        if self._turn == 0:
            self._messages.append(("user", self._text.take(self._sizes[0])))
        else:
            more = self._sizes[self._turn] - self._sizes[self._turn - 1]
            self._messages.append(("assistant", self._text.take(more // 2)))
            self._messages.append(("user", self._text.take(more - more // 2)))
        turn = Turn(
            number=number,
            at_s=at_s,
            session=self._number,
            turn=self._turn,
            latency_class=self._class,
            critical=self._critical,
            messages=tuple(self._messages),
            max_tokens=source.randint(*CLASSES[self._class].max_tokens),
        )
        self._turn += 1
        self.last_s = at_s
        return turn


class _Text:
    """Sentences of one session, unlike those of every other one from the first words on."""

    def __init__(self, seed: int, session: int) -> None:
        self._seed = seed * 100_003 + session
        self._taken = 0

    def take(self, tokens: int) -> str:
        length = round(tokens * CHARACTERS_PER_TOKEN)
        text = ""
        while len(text) < length:
            text += story_prompt(self._seed, self._taken) + " "
            self._taken += 1
        return text[:length].rstrip()
