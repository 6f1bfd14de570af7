"""Two-stage answers: one model finds the facts, another one words them, and the wording leaves only if it says the same."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Final

from cluster.api.chat import ChatRequest
from cluster.api.embedding import EmbeddingRequest
from cluster.api.errors import ApiError
from cluster.api.json_body import JsonObject
from cluster.api.prompt_size import estimate_tokens
from cluster.api.requests import ApiRequest
from cluster.routing.decision import RouteDecision
from cluster.verification import compact
from cluster.verification.verdict import Verdict, all_of
from deployments.channel.stream import ReplicaLostError, SlowReaderError
from deployments.engines.protocol import Endpoint, EngineReply
from deployments.ingress import failures
from deployments.ingress.answers import MadeAnswer, texts_of
from deployments.ingress.choosing import Bound, Choosing, tokens_at_most
from deployments.ingress.course import Course, dispatch, engine_request
from deployments.ingress.dispatch import NoReplicaError, QueueFullError
from deployments.ingress.exchange import Exchange
from deployments.ingress.feedback import FeedbackLoop
from deployments.ingress.provenance import Judgement, Provenance, score_of
from deployments.ingress.sending import StreamSender, send_whole
from deployments.ingress.services import Services
from deployments.ingress.tracing import AttemptSpan, RequestSpan
from deployments.ingress.verification import Verification
from deployments.telemetry.metrics import StreamTimer

NAME: Final = "two_stage"
REWRITE: Final = "Reword the text so that it reads well. Keep every fact and add none. Reply with the text alone."


class TwoStage:
    """Answers the requests of one endpoint that ask for two stages."""

    def __init__(
        self,
        services: Services,
        endpoint: Endpoint,
        feedback: FeedbackLoop,
        verification: Verification,
        choosing: Choosing,
    ) -> None:
        self._services = services
        self._endpoint = endpoint
        self._feedback = feedback
        self._verification = verification
        self._choosing = choosing

    async def answer(self, exchange: Exchange, course: Course, timer: StreamTimer, span: RequestSpan) -> EngineReply:
        """Have the request answered in two stages. A stream is sent once it is known what leaves."""
        settle_by_s = course.settle_by_s
        streams, usage = course.streams, bool(getattr(course.asked, "include_usage", False))
        course.asked, course.request = _whole(course.asked), _whole(course.request)
        settled = await self._feedback.settle(course, span)
        made = settled.made
        if made is None:
            return await self._feedback.send_template(exchange, course, streams, timer, span)
        facts = failures.require_reply(made.reply)
        provenance = self._feedback.provenance(course, settled, span)
        if facts.status != 200:
            return await send_whole(exchange, made.answer, facts, provenance, span)
        reply, provenance = await self._reworded(course, facts, provenance, span, settle_by_s)
        if reply is facts and course.answer is not made.answer:
            course.resume(made.answer)
        answer = course.answer
        if not streams:
            return await send_whole(exchange, answer, reply, provenance, span)
        said = MadeAnswer(
            self._endpoint,
            span.request_id,
            provenance.decision.model,
            int(time.time()),
            "".join(texts_of(reply.body)[:1]),
            reply.usage,
            reply.finish_reason or "stop",
        )
        sender = StreamSender(exchange, provenance, timer, span)
        return await sender.send_known(answer, said.events(include_usage=usage), replace(reply, body=b""))

    async def _reworded(
        self, course: Course, facts: EngineReply, told: Provenance, span: RequestSpan, settle_by_s: float
    ) -> tuple[EngineReply, Provenance]:
        """The reply that leaves, and what is said of it: the rewording if it is verified, else the facts as they were."""
        judgement = course.judgement or Judgement()
        text = "".join(texts_of(facts.body)[:1])
        decision: RouteDecision | None = None
        reply: EngineReply | None = None
        facts_attempts, charged = course.attempts, False
        bound = self._second(course, facts, text, len(judgement.trail))
        if isinstance(bound, str):
            verdict = Verdict(False, NAME, bound)
        else:
            decision = bound[0]
            self._services.metrics.decided(decision.model, decision.reason_code)
            # Charged at once, in case the caller leaves; the facts may be the answer after all.
            course.spend(facts.usage)
            charged = True
            course.turn_to(*bound)
            with span.attempt(len(judgement.trail) + 1, decision.model, None) as attempt_span:
                try:
                    async with asyncio.timeout_at(settle_by_s):
                        reply, verdict = await self._reword(course, text, span, attempt_span)
                except TimeoutError:
                    if course.answer is not None:
                        usage = course.used(course.answer)
                        course.spend(usage)
                        self._services.metrics.spent(decision.model, usage)
                    course.close()
                    verdict = Verdict(False, NAME, "no time was left to reword it")
                attempt_span.verdict(verdict)
                attempt_span.outcome("accepted" if verdict.ok else "refused", f"{verdict.name}: {verdict.reason}")
        judgement.trail.append(
            {
                "model": None if decision is None else decision.model,
                "temperature": None,
                "confidence": None,
                "outcome": "reworded" if verdict.ok else "refused",
                "why": f"{verdict.name}: {verdict.reason}",
            }
        )
        if verdict.ok and reply is not None and decision is not None:
            self._services.metrics.spent(told.decision.model, facts.usage)
            course.sent = decision
            judgement.verdict, judgement.spent = verdict, course.spent
            judgement.confidence = score_of(reply.confidence)
            return reply, Provenance(decision, span.trace_id, facts_attempts, judgement, course.account)
        if charged:
            course.take_back(facts.usage)
        if decision is not None and reply is not None:
            course.spend(reply.usage)
            self._services.metrics.spent(decision.model, reply.usage)
        course.sent = told.decision
        judgement.spent = course.spent
        return facts, replace(told, earlier=told.earlier + course.attempts - facts_attempts)

    def _second(self, course: Course, facts: EngineReply, text: str, attempts: int) -> Bound | str:
        """Who rewords `text`, within the bounds of all attempts; else why nobody does."""
        feedback = self._services.config.routing.feedback
        if attempts >= feedback.max_attempts:
            return f"{feedback.max_attempts} attempts are made"
        request = replace(course.asked, model=feedback.fluency_role)
        try:
            bound = self._choosing.bind(_rewording(request, text), self._choosing.decide(request).decision)
        except ApiError as error:
            return f"no model can reword it ({error.code})"
        if course.spent.total + facts.usage.total + tokens_at_most(bound[2]) > feedback.max_tokens:
            return f"rewording it could pass {feedback.max_tokens} tokens"
        return bound

    async def _reword(
        self, course: Course, text: str, span: RequestSpan, attempt_span: AttemptSpan
    ) -> tuple[EngineReply | None, Verdict]:
        """The rewording, and whether it says the same and passes the request's own checks."""
        request = engine_request(course, self._endpoint, span.request_id, attempt_span.trace_headers)
        answer = dispatch(self._services, course, replace(request, judge=True))
        try:
            while await answer.next() is not None:
                pass
            reply = failures.require_reply(answer.reply)
        except (NoReplicaError, QueueFullError, ReplicaLostError, SlowReaderError) as error:
            course.spend(course.used(answer))
            code = failures.to_api_error(error, self._services.config).code
            return None, Verdict(False, NAME, f"it was not reworded ({code})")
        if reply.status != 200:
            return reply, Verdict(False, NAME, f"its model answered with status {reply.status}")
        texts = texts_of(reply.body)
        checks = replace(await self._verification.prepare(course.knobs.verify), verifier=False)
        own = await self._verification.judge(checks, course, texts, span)
        if own is not None and not own.ok:
            return reply, own
        asked = compact.same_meaning(text, "".join(texts[:1]))
        same = await self._verification.ask(asked, course, span, attempt_span.trace_headers, NAME)
        return reply, same if own is None else (all_of((same, own)) or same)


def _whole(request: ApiRequest) -> ApiRequest:
    """`request` with a whole answer, not a stream."""
    if isinstance(request, EmbeddingRequest):
        return request
    body = {name: value for name, value in request.body.items() if name not in ("stream", "stream_options")}
    return replace(request, stream=False, include_usage=False, body=body)


def _rewording(request: ApiRequest, text: str) -> ApiRequest:
    """The request that has `text` reworded, sized as what it is."""
    if not isinstance(request, ChatRequest):
        return request
    messages: list[JsonObject] = [{"role": "system", "content": REWRITE}, {"role": "user", "content": text}]
    size = len(REWRITE) + len(text.encode())
    return replace(
        request,
        messages=len(messages),
        prompt_bytes=size,
        prompt_tokens_estimate=estimate_tokens(size, len(messages)),
        text=text,
    ).with_body({"messages": list(messages)})
