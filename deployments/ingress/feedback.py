"""Carries out what `cluster/routing/feedback.py` decides: attempts one after the other, until an answer leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from cluster.api.chat import ChatRequest
from cluster.api.completion import CompletionRequest
from cluster.api.embedding import EmbeddingRequest
from cluster.api.errors import ApiError
from cluster.api.requests import ApiRequest
from cluster.routing.feedback import Accept, Attempt, Bounds, Escalate, Requery, Step, Template, bounds_for, next_step
from cluster.routing.template import template_answer
from deployments.channel.stream import ReplicaLostError, SlowReaderError
from deployments.engines.protocol import Endpoint, EngineReply, TokenUsage
from deployments.ingress import failures
from deployments.ingress.answers import MadeAnswer
from deployments.ingress.attempts import Attempts, Made, Run, temperature_of
from deployments.ingress.course import Bind, Course, fall_back
from deployments.ingress.dispatch import NoReplicaError, QueueFullError
from deployments.ingress.exchange import Exchange
from deployments.ingress.provenance import Provenance
from deployments.ingress.sending import StreamSender, send_whole
from deployments.ingress.services import Services
from deployments.ingress.tracing import AttemptSpan, RequestSpan
from deployments.ingress.verification import Checks, Verification
from deployments.telemetry.metrics import StreamTimer

Note = Callable[[Course, RequestSpan], None]
"""Writes the course's decision into the trace and the metrics."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What the attempts came to."""

    made: Made | None
    """The answer to send; None: that of the passages."""


class FeedbackLoop:
    """Answers the requests of one endpoint whose answers are judged."""

    def __init__(
        self, services: Services, endpoint: Endpoint, verification: Verification, bind: Bind, note: Note
    ) -> None:
        self._services = services
        self._endpoint = endpoint
        self._verification = verification
        self._attempts = Attempts(services, endpoint, verification)
        self._bind = bind
        self._note = note

    def wanted(self, course: Course) -> bool:
        """Whether answers to the request are judged: as its caller says, else as the config does for what is routed."""
        if self._endpoint is Endpoint.EMBEDDING:
            return False
        knobs = course.knobs
        if knobs.verify is not None or knobs.min_confidence is not None or knobs.grounding or knobs.retries:
            return True
        return (
            self._services.config.routing.feedback.enabled and course.decision.role is not None and knobs.retries != 0
        )

    async def answer(self, exchange: Exchange, course: Course, timer: StreamTimer, span: RequestSpan) -> EngineReply:
        """Have the request answered, judged, and sent."""
        settled = await self.settle(course, span)
        made = settled.made
        if made is None:
            return await self.send_template(exchange, course, course.streams, timer, span)
        provenance = self.provenance(course, settled, span)
        reply, answer = made.reply, made.answer
        if not course.streams:
            return await send_whole(exchange, answer, failures.require_reply(reply), provenance, span)
        sender = StreamSender(exchange, provenance, timer, span)
        if reply is None and answer is not None:
            return await sender.send(answer, made.held)
        reply = failures.require_reply(reply)
        if reply.status != 200 and not made.held:
            return await sender.refuse(answer, reply)
        return await sender.send_known(answer, made.held, reply)

    async def settle(self, course: Course, span: RequestSpan) -> Settled:
        """Make attempts until one is accepted or none is left. Raises `ApiError` if the first one fails altogether."""
        checks = await self._verification.prepare(course.knobs.verify)
        feedback = self._services.config.routing.feedback
        run = Run(course, self._bounds(course), checks, feedback.gate_tokens if self._gated(course, checks) else None)
        run.intent = course.intent
        course.judgement = run.judgement
        try:
            while (settled := await self._attempt(run, span)) is None:
                pass
            return settled
        finally:
            for one in run.made:
                if one is not run.chosen:
                    usage = one.usage if one.answer is None else course.used(one.answer)
                    self._services.metrics.spent(one.attempt.model, usage)

    async def _attempt(self, run: Run, span: RequestSpan) -> Settled | None:
        """Make one attempt and decide what follows; None: another one, which the course is set on."""
        course = run.course
        with span.attempt(len(run.made) + 1, course.decision.model, temperature_of(course)) as attempt_span:
            one = await self._make(run, span, attempt_span)
            if one is None:
                attempt_span.outcome("failed", "its replica was lost; the next model takes over")
                step: Step | None = None
            else:
                run.made.append(one)
                if one.attempt.confidence is not None:
                    self._services.recent.judged(one.attempt.model, run.intent, one.attempt.confidence)
                    self._services.metrics.confident(one.attempt.model, one.attempt.confidence)
                if len(run.made) == 1 and one.reply is not None and one.reply.status != 200:
                    attempt_span.outcome("failed", f"its engine answered with status {one.reply.status}")
                    run.chosen = one
                    return Settled(one)
                step = self._follow(run)
                attempt_span.outcome(*run.said)
        if isinstance(step, Accept):
            run.choose(step)
            return Settled(run.chosen)
        if isinstance(step, Template):
            if not run.bounds.template:
                raise failures.no_answer(step.reason)
            return Settled(None)
        if not isinstance(step, Requery):
            self._note(course, span)
        return None

    async def _make(self, run: Run, span: RequestSpan, attempt_span: AttemptSpan) -> Made | None:
        """An attempt; one that fails after there was another is none the less one. None: the next model takes over."""
        course, config = run.course, self._services.config
        model, began = course.decision.model, asyncio.get_running_loop().time()
        try:
            # The first one has the request's own time limit; later ones end in time for what there is to be sent.
            async with asyncio.timeout_at(run.bounds.deadline_s if run.made else None):
                one = await self._attempts.make(course, run.checks, run.gate, span, attempt_span)
        except (NoReplicaError, ReplicaLostError) as error:
            if not run.made:
                if fall_back(course, self._bind):
                    return None
                raise failures.to_api_error(error, config) from error
            code = failures.to_api_error(error, config).code
        except (QueueFullError, SlowReaderError) as error:
            if not run.made:
                raise failures.to_api_error(error, config) from error
            code = failures.to_api_error(error, config).code
        except TimeoutError:
            code = "timeout"
        else:
            if not run.made or one.reply is None or one.reply.status == 200:
                return one
            code = f"status {one.reply.status}"
        usage = TokenUsage() if course.answer is None else course.used(course.answer)
        seconds = asyncio.get_running_loop().time() - began
        failed = Attempt(model, temperature_of(course), tokens=usage.total, seconds=seconds, failed=code, kept=False)
        course.stop()
        return Made(failed, course.decision, course.answer, usage=usage)

    def _follow(self, run: Run) -> Step:
        """The step after the attempts made, once it can be taken; the course is set on it."""
        while True:
            run.forget_lost()
            ready = {name for name, health in self._services.health.models().items() if health.healthy}
            attempts = [one.attempt for one in run.made]
            now_s = asyncio.get_running_loop().time()
            step = next_step(attempts, run.bounds, ready, now_s, run.course.check_tokens)
            self._services.metrics.judged(attempts[-1].model, run.record(step))
            if isinstance(step, Accept) and step.attempt == len(run.made) - 1:
                return step
            run.course.spend(run.made[-1].usage)
            if isinstance(step, Accept):
                return step
            if isinstance(step, Template):
                # It is charged, and its model need not wait for the caller to read the passages.
                run.course.leave()
                return step
            run.prune(self._services.config.ingress.limits.max_buffered_bytes_per_stream)
            if self._turn(run.course, step):
                return step
            model = step.model if isinstance(step, Escalate) else attempts[-1].model
            run.made.append(Made(Attempt(model, None, failed="contract", kept=False), run.course.decision))

    def _turn(self, course: Course, step: Requery | Escalate) -> bool:
        """Set the course on the next attempt; whether its model can keep the contract."""
        if isinstance(step, Requery):
            course.turn_to(course.decision, course.contract, _at_temperature(course.request, step.temperature))
            return True
        decision = course.decision
        code = decision.reason_code.removesuffix("_fallback").removesuffix("_escalated") + "_escalated"
        following = replace(
            decision,
            model=step.model,
            reason=f"{decision.reason}; {step.reason}",
            reason_code=code,
            fallbacks=tuple(name for name in decision.fallbacks if name != step.model),
        )
        for asked in (_at_temperature(course.asked, step.temperature), course.asked):
            try:
                course.turn_to(*self._bind(asked, following))
            except ApiError:
                # The model's contract samples otherwise, or it holds less than was asked for.
                continue
            return True
        return False

    def _gated(self, course: Course, checks: Checks) -> bool:
        """Whether only the beginning of a stream is held back: checks need the whole answer."""
        return course.streams and not checks.any

    def _bounds(self, course: Course) -> Bounds:
        feedback, knobs = self._services.config.routing.feedback, course.knobs
        template = feedback.template if knobs.grounding is None else knobs.grounding
        routed = feedback.enabled and course.decision.role is not None and knobs.retries != 0
        bounds = bounds_for(
            self._services.config,
            course.decision,
            knobs,
            template=template and _takes_text(course.asked),
            deadline_s=course.settle_by_s,
        )
        if knobs.two_stage:
            # The rewording is an attempt, too.
            bounds = replace(bounds, max_attempts=max(1, min(bounds.max_attempts, feedback.max_attempts - 1)))
        if routed or knobs.retries or knobs.grounding or knobs.min_confidence is not None:
            return bounds
        # Only checks were asked for, so only they decide.
        return replace(bounds, threshold=0.0, thresholds=None)

    def provenance(self, course: Course, settled: Settled, span: RequestSpan) -> Provenance:
        """What is said of the answer."""
        judgement, made = course.judgement, settled.made
        if judgement is not None:
            judgement.spent = course.spent
        if made is None or made.answer is None:
            return Provenance(course.decision, span.trace_id, course.attempts, judgement, course.account)
        earlier = course.attempts - made.answer.attempts
        return Provenance(made.decision, span.trace_id, earlier, judgement, course.account)

    async def send_template(
        self, exchange: Exchange, course: Course, streams: bool, timer: StreamTimer, span: RequestSpan
    ) -> EngineReply:
        """Send the answer that rests on the request's passages, or says that there is none."""
        made = template_answer(course.knobs.passages)
        if course.judgement is not None:
            course.judgement.citations = made.citations
            course.judgement.confidence = None
        provenance = self.provenance(course, Settled(None), span)
        answer = MadeAnswer(
            self._endpoint, span.request_id, course.decision.model, int(time.time()), made.text, course.spent
        )
        if streams:
            usage = bool(getattr(course.asked, "include_usage", False))
            reply = EngineReply(200, finish_reason="stop")
            sender = StreamSender(exchange, provenance, timer, span)
            return await sender.send_known(None, answer.events(include_usage=usage), reply)
        reply = EngineReply(200, answer.whole(), finish_reason="stop")
        return await send_whole(exchange, None, reply, provenance, span)


def _at_temperature(request: ApiRequest, temperature: float | None) -> ApiRequest:
    """`request` drawn with `temperature`; None: as it is."""
    if temperature is None or isinstance(request, EmbeddingRequest):
        return request
    return replace(request, temperature=temperature).with_body({"temperature": temperature})


def _takes_text(request: ApiRequest) -> bool:
    """Whether plain text can take the place of the answer: one choice, no form, no tool."""
    if isinstance(request, ChatRequest):
        return request.n == 1 and not request.tools and not request.response_format
    return isinstance(request, CompletionRequest) and request.sequences == 1
