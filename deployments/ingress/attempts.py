"""One attempt at a request: dispatch it, collect what comes, as far as it is held back, and judge it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from cluster.routing.decision import RouteDecision
from cluster.routing.feedback import Accept, Attempt, Bounds, Escalate, Requery, Step, Template, best_of
from deployments.channel.stream import SlowReaderError
from deployments.engines.protocol import Endpoint, EngineReply, TokenUsage
from deployments.ingress.answers import streamed_texts, texts_of
from deployments.ingress.choosing import tokens_at_most
from deployments.ingress.course import Course, dispatch, engine_request
from deployments.ingress.dispatch import Answer
from deployments.ingress.provenance import Judgement, score_of, shown
from deployments.ingress.services import Services
from deployments.ingress.tracing import AttemptSpan, RequestSpan
from deployments.ingress.verification import Checks, Verification

LARGE_BYTES = 65_536
"""Bytes of an answer from which it is parsed on another thread."""


@dataclass(slots=True)
class Made:
    """An attempt, and what there is of its answer."""

    attempt: Attempt
    decision: RouteDecision
    answer: Answer | None = None
    reply: EngineReply | None = None
    """None: its stream still runs, or there is no answer."""
    held: bytes = b""
    """Events of a stream that were held back."""
    usage: TokenUsage = field(default_factory=TokenUsage)

    def drop(self) -> None:
        """Let go of the answer: another one will be sent."""
        self.attempt = replace(self.attempt, kept=False)
        self.reply, self.held = None, b""


@dataclass(slots=True)
class Run:
    """All attempts at one request."""

    course: Course
    bounds: Bounds
    checks: Checks
    gate: int | None
    """Tokens of a stream that are held back; None: all, or it is no stream."""
    made: list[Made] = field(default_factory=list)
    chosen: Made | None = None
    intent: str | None = None
    """What kind of request it is, for what is remembered of the models; None: not known."""
    judgement: Judgement = field(default_factory=Judgement)
    said: tuple[str, str] = ("", "")
    """Outcome of the last attempt that was dispatched, and why."""

    def record(self, step: Step) -> str:
        """Write the last attempt and what follows it into the trail; its outcome."""
        attempt = self.made[-1].attempt
        outcome = _outcome(step, len(self.made) - 1)
        entry: dict[str, object] = {
            "model": attempt.model,
            "temperature": attempt.temperature,
            "confidence": None if attempt.confidence is None else round(attempt.confidence, 4),
            "tokens": attempt.tokens,
            "seconds": round(attempt.seconds, 4),
            "outcome": outcome if attempt.failed is None else "failed",
            "why": step.reason,
        }
        if attempt.verdict is not None:
            entry["verdict"] = shown(attempt.verdict)
        self.judgement.trail.append(entry)
        self.said = str(entry["outcome"]), step.reason
        return self.said[0]

    def prune(self, max_buffered_bytes: int) -> None:
        """Let go of answers that will not be sent: all but the best, and that too if the passages come last anyway.

        The best may be a stream that still runs. It runs on: what follows it may fail.
        """
        best = None if self.bounds.template else best_of([one.attempt for one in self.made])
        if best == len(self.made) - 1 and self.made[best].reply is None:
            self.course.park(self.made[best].usage, max_buffered_bytes)
        for at, one in enumerate(self.made):
            if at != best:
                one.drop()

    def forget_lost(self) -> None:
        """The stream that was kept cannot be sent any more if it broke off."""
        parked = self.course.parked
        if parked is not None and parked.lost:
            for one in self.made:
                if one.answer is parked.answer:
                    one.drop()

    def choose(self, step: Accept) -> None:
        """Take the attempt that is sent."""
        chosen = self.made[step.attempt]
        if chosen is not self.made[-1]:
            # It was charged when it was left.
            self.course.take_back(chosen.usage)
            chosen.held += self.course.resume(chosen.answer)
            self.judgement.trail[step.attempt]["outcome"] = "best"
        self.course.drop_parked()
        self.chosen = chosen
        self.course.sent = chosen.decision
        self.judgement.confidence, self.judgement.verdict = chosen.attempt.confidence, chosen.attempt.verdict


def _outcome(step: Step, last: int) -> str:
    """What became of attempt `last`, a word."""
    if isinstance(step, Requery):
        return "requeried"
    if isinstance(step, Escalate):
        return "escalated"
    if isinstance(step, Template):
        return "template"
    if step.good:
        return "accepted"
    return "best" if step.attempt == last else "refused"


class Attempts:
    """Makes the attempts of one ingress at one endpoint."""

    def __init__(self, services: Services, endpoint: Endpoint, verification: Verification) -> None:
        self._services = services
        self._endpoint = endpoint
        self._verification = verification

    async def make(
        self, course: Course, checks: Checks, gate: int | None, span: RequestSpan, attempt_span: AttemptSpan
    ) -> Made:
        """Make an attempt with the course's model. `gate` is how many tokens of a stream are held back, None for all.

        Raises what `Answer.next` raises, though never for a stream that was lost behind the gate.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        request = engine_request(course, self._endpoint, span.request_id, attempt_span.trace_headers)
        judged = replace(request, judge=True, judge_tokens=gate if course.streams else None)
        answer = dispatch(self._services, course, judged)
        held = await self._hold(answer, gate)
        reply = answer.reply
        usage = course.used(answer)
        known = reply.confidence if reply is not None else answer.early
        attempt = Attempt(
            model=course.decision.model,
            temperature=temperature_of(course),
            confidence=score_of(known),
            tokens=usage.total,
            tokens_at_most=0 if reply is not None else tokens_at_most(course.request),
            seconds=loop.time() - began,
        )
        if reply is not None and reply.status == 200 and checks.any:
            texts = await _texts(reply, held)
            verdict = await self._verification.judge(checks, course, texts, span)
            attempt = replace(attempt, verdict=verdict, seconds=loop.time() - began)
        attempt_span.confident(attempt.confidence)
        attempt_span.verdict(attempt.verdict)
        return Made(attempt, course.decision, answer, reply, held, usage)

    async def _hold(self, answer: Answer, gate: int | None) -> bytes:
        """Events up to the gate, or all. The judgement of N tokens is there before the second event that follows them."""
        limit = self._services.config.ingress.limits.max_buffered_bytes_per_stream
        pieces: list[bytes] = []
        size = 0
        while (data := await answer.next()) is not None:
            pieces.append(data)
            size += len(data)
            if size > limit:
                raise SlowReaderError(f"more than {limit} bytes are held back until they are judged")
            if gate is not None and (answer.early is not None or answer.events >= gate + 2):
                break
        return b"".join(pieces)


def temperature_of(course: Course) -> float | None:
    """The temperature in force; None: the model's default."""
    temperature: float | None = getattr(course.request, "temperature", None)
    return temperature


async def _texts(reply: EngineReply, held: bytes) -> tuple[str, ...]:
    data, read = (held, streamed_texts) if held else (reply.body, texts_of)
    return await asyncio.to_thread(read, data) if len(data) > LARGE_BYTES else read(data)
