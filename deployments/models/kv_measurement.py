"""Measures on a running engine what a lower KV precision changes in its answers; see `kv_quality` for the figures.

The engine is one that can change its KV precision while it runs, so that nothing else differs: same weights, same
process, same kernels. It is asked one request at a time, and prefixes are never shared: in another batch, or with
another part of the prompt computed, sums are rounded otherwise, and an engine would not even agree with itself.

Both precisions read the same texts, the model's own greedy answers, through the prompt's log-probabilities: every
position is computed from the KV cache, as attention reads what it has just written, rounded as the cache rounds it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from cluster.api.json_body import JsonObject
from cluster.precision.measures import OWN
from deployments.engines.kv_precision import KvPrecisionError
from deployments.engines.protocol import Endpoint, Engine, EngineRequest
from deployments.models.errors import ModelError
from deployments.models.kv_prompts import Prompt
from deployments.models.kv_quality import Likeliest, Quality, compare, summarise

TOP: Final = 20
"""Likeliest tokens that are told of at each position; vLLM's own limit."""
SAME_KL: Final = 1e-6
"""Divergence, nats, up to which an engine counts as agreeing with itself."""

OnStep = Callable[[str, float], None]
"""Called with what is being done and the fraction of all that is done, 0 to 1."""


class QualityError(ModelError):
    """The quality could not be measured, or what was measured means nothing."""


class FixedPrecisionError(QualityError):
    """The engine cannot change its KV precision."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of one model."""

    own: str
    """Number format of the model's own KV, for example `bfloat16`."""
    quality: dict[str, Quality]
    """By lower KV precision."""
    itself: Quality
    """The own precision against itself, after the others: whether the engine repeats itself, and has changed back."""
    longest_prompt: int
    """Tokens."""
    block_tokens: int
    """Tokens that a KV block holds."""


class _Logprob(msgspec.Struct):
    logprob: float


class _Choice(msgspec.Struct):
    text: str
    token_ids: list[int] | None = None
    prompt_logprobs: list[dict[str, _Logprob] | None] | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]


_COMPLETION: Final = msgspec.json.Decoder(_Completion)


@dataclass(frozen=True, slots=True)
class _Answer:
    ids: tuple[int, ...]
    text: str


async def measure(engine: Engine, name: str, prompts: Sequence[Prompt], tokens: int, on_step: OnStep) -> Measured:
    """Ask the started `engine` of the model `name` every prompt, for greedy answers of at most `tokens` tokens.

    Raises `FixedPrecisionError`, `QualityError`, or `EngineDeadError`.
    """
    lowers = [precision for precision in engine.kv_precisions if precision != OWN]
    if not lowers:
        why = "; ".join(engine.kv_blockers) or "it has only one"
        raise FixedPrecisionError(
            f"the KV precision of {name} cannot change while it runs: {why}",
            "There is nothing to measure: the precision ladder leaves such an engine as it is",
        )
    asker = _Asker(engine, name, tokens, _Steps(on_step, len(prompts) * (3 + 2 * len(lowers))))
    own = engine.stats().kv_precision
    answers = await asker.answers(prompts, own)
    reference = await asker.readings(prompts, answers, own)
    quality: dict[str, Quality] = {}
    for lower in lowers:
        await _change(engine, lower)
        found = await asker.readings(prompts, answers, lower)
        free = await asker.answers(prompts, lower)
        quality[lower] = _quality(reference, found, [a.text == b.text for a, b in zip(answers, free, strict=True)])
    await _change(engine, OWN)
    again = await asker.readings(prompts, answers, f"{own} again")
    itself = _quality(reference, again, [one == other for one, other in zip(reference, again, strict=True)])
    _check(name, quality, itself)
    return Measured(own, quality, itself, max(len(prompt.ids) for prompt in prompts), engine.stats().kv_block_tokens)


async def _change(engine: Engine, precision: str) -> None:
    try:
        await engine.set_kv_precision(precision)
    except KvPrecisionError as error:
        raise QualityError(str(error), "Nothing was measured") from error


def _quality(own: Sequence[Sequence[Likeliest]], lower: Sequence[Sequence[Likeliest]], same: Sequence[bool]) -> Quality:
    try:
        return summarise([compare(*one) for one in zip(own, lower, same, strict=True)])
    except ValueError as error:
        raise QualityError(f"the answers hold nothing to compare ({error})", "Ask more prompts") from error


def _check(name: str, quality: Mapping[str, Quality], itself: Quality) -> None:
    if itself.kl.value > SAME_KL:
        raise QualityError(
            f"{name} does not repeat itself: its own KV precision differs from itself by {itself.kl.value:.2g} nats",
            "What differs between two precisions could be that, so nothing is told of them",
        )
    for lower, found in quality.items():
        if found.kl.value == 0:
            raise QualityError(
                f"at {lower} {name} answers exactly as before, to the last bit: its KV cache was not read",
                "Please report this with the config: the figures would promise what was not measured",
            )


class _Steps:
    """Counts what is done."""

    def __init__(self, on_step: OnStep, total: int) -> None:
        self._on_step = on_step
        self._total = total
        self._done = 0

    def step(self, text: str) -> None:
        self._on_step(text, self._done / self._total)
        self._done += 1


class _Asker:
    def __init__(self, engine: Engine, name: str, tokens: int, steps: _Steps) -> None:
        self._engine = engine
        self._name = name
        self._tokens = tokens
        self._steps = steps
        self._numbers = itertools.count()

    async def answers(self, prompts: Sequence[Prompt], at: str) -> list[_Answer]:
        """The model's greedy answers."""
        answers = []
        for prompt in prompts:
            self._steps.step(f"answering at {at}")
            choice = await self._complete(prompt.ids, {"max_tokens": self._tokens, "return_token_ids": True})
            answers.append(_Answer(tuple(choice.token_ids or ()), choice.text))
        return answers

    async def readings(
        self, prompts: Sequence[Prompt], answers: Sequence[_Answer], at: str
    ) -> list[list[dict[int, float]]]:
        """The likeliest tokens at every position of the answers, which the model is made to read."""
        readings = []
        for prompt, answer in zip(prompts, answers, strict=True):
            self._steps.step(f"reading at {at}")
            body: JsonObject = {"max_tokens": 1, "prompt_logprobs": TOP}
            told = (await self._complete((*prompt.ids, *answer.ids), body)).prompt_logprobs
            if told is None or len(told) != len(prompt.ids) + len(answer.ids):
                raise QualityError(f"the engine of {self._name} tells no log-probabilities of prompts", "")
            readings.append([_likeliest(position) for position in told[len(prompt.ids) :]])
        return readings

    async def _complete(self, ids: Sequence[int], body: JsonObject) -> _Choice:
        number = str(next(self._numbers))
        request = EngineRequest(
            f"quality-{number}",
            Endpoint.COMPLETION,
            # The model's own defaults of sampling, if it comes with any, are not to take part.
            {"model": self._name, "prompt": list(ids), "temperature": 0, "repetition_penalty": 1.0, **body},
            # Prefixes are shared within a tenant only.
            tenant=number,
        )
        reply = await self._engine.run(request, lambda _events: None)
        if reply.status != 200:
            raise QualityError(f"the engine of {self._name} refused a prompt: {reply.body.decode()}", "")
        return _COMPLETION.decode(reply.body).choices[0]


def _likeliest(position: Mapping[str, _Logprob] | None) -> dict[int, float]:
    return {int(token): told.logprob for token, told in (position or {}).items()}
