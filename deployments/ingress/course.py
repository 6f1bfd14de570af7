"""Where one request is on its way: the model that works on it, what was tried before, and what all of it has used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from cluster.api.embedding import EmbeddingRequest
from cluster.api.errors import ApiError
from cluster.api.knobs import NO_KNOBS, Knobs
from cluster.api.requests import ApiRequest
from cluster.contracts import Contract
from cluster.records.record import Precision
from cluster.routing.decision import RouteDecision
from deployments.engines.protocol import Endpoint, EngineRequest, TokenUsage
from deployments.ingress.account import Account, Call
from deployments.ingress.choosing import Bound
from deployments.ingress.dispatch import Answer
from deployments.ingress.parked import Parked
from deployments.ingress.provenance import Judgement
from deployments.ingress.services import Services

MARGIN: Final = 0.05
"""Share of the request's time that is kept for sending what there is when attempts take too long."""

CHECK_MARGIN: Final = 0.07
"""The same for checks, which end a little earlier: an answer that could not be checked is none the less an answer."""

Bind = Callable[[ApiRequest, RouteDecision], Bound]
"""Holds a request to the contract that a decision means. Raises `ApiError` 400 if it cannot be kept."""


@dataclass(slots=True)
class Course:
    """One request, and what it was asked for in the first place."""

    asked: ApiRequest
    decision: RouteDecision
    contract: Contract
    request: ApiRequest
    """What was asked for, within the contract."""
    account: Account = field(kw_only=True)
    """What it takes of engines."""
    deadline_s: float = math.inf
    """When the request's time is over, in a queue or at work, on the loop's clock, seconds."""
    tenant: str = ""
    intent: str | None = None
    """What it is for; None: not known."""
    answer: Answer | None = None
    earlier: int = 0
    """Attempts on replicas before the model at work."""
    begun: int = 0
    """Times that engines were asked for the answer."""
    checked: int = 0
    """Times that a verifier was asked about it."""
    check_tokens: int = 0
    """Tokens that these took."""
    lost: bool = False
    """Whether a model was lost before it answered, and another one took over."""
    spent: TokenUsage = field(default_factory=TokenUsage)
    """What attempts and checks used beside the answer that is sent."""
    judgement: Judgement | None = None
    """What is known of a judged answer, ready to be said."""
    sent: RouteDecision | None = None
    """Whose answer is sent, where that is not the model at work any more."""
    extra: list[Answer] = field(default_factory=list)
    """Calls beside the answer that are under way: those of a verifier."""
    parked: Parked | None = None
    """A stream that is kept in case that nothing better comes."""

    @property
    def knobs(self) -> Knobs:
        """What the caller set beside the model."""
        return NO_KNOBS if isinstance(self.asked, EmbeddingRequest) else self.asked.knobs

    @property
    def streams(self) -> bool:
        """Whether the caller wants events."""
        return bool(getattr(self.asked, "stream", False))

    @property
    def attempts(self) -> int:
        """Attempts in all, on replicas."""
        return self.earlier + (0 if self.answer is None else self.answer.attempts)

    @property
    def settle_by_s(self) -> float:
        """Until when attempts may take, on the loop's clock: the rest of the time is for sending what there is."""
        return self.deadline_s - self.contract.timeout_s * MARGIN

    @property
    def check_by_s(self) -> float:
        """Until when checks of an answer may take, on the loop's clock."""
        return self.deadline_s - self.contract.timeout_s * CHECK_MARGIN

    def precision(self, model: str) -> Precision | None:
        """The number formats that a model's answer was computed in; None: it has none here."""
        by_config = self.account.precision(model)
        return by_config if by_config is None or self.answer is None else self.answer.precision(by_config)

    def turn_to(self, decision: RouteDecision, contract: Contract, request: ApiRequest) -> None:
        """Leave what was tried for another attempt."""
        self.leave()
        self.decision, self.contract, self.request = decision, contract, request

    def leave(self) -> None:
        """Free what the model at work holds; its replicas count as attempts."""
        self.stop()
        self.earlier, self.answer = self.attempts, None

    def park(self, charged: TokenUsage, max_buffered_bytes: int) -> None:
        """Leave the model at work, but keep its stream, instead of what was kept before."""
        self.drop_parked()
        if self.answer is not None:
            self.parked = Parked(self.answer, charged, max_buffered_bytes)
        self.earlier, self.answer = self.attempts, None

    def resume(self, answer: Answer | None) -> bytes:
        """Go back to an earlier answer: it is sent. Returns what came of it since it was parked."""
        self.leave()
        came = b""
        if self.parked is not None and self.parked.answer is answer:
            came, self.parked = self.parked.take(), None
        self.answer = answer
        self.earlier -= 0 if answer is None else answer.attempts
        return came

    def used(self, answer: Answer) -> TokenUsage:
        """What an answer used; of one that was not read to its end, what is estimated of it."""
        if answer.reply is not None:
            return answer.reply.usage
        if answer.replica_id is None:
            return TokenUsage()
        return TokenUsage(prompt_tokens=self.request.prompt_tokens_estimate, completion_tokens=answer.events)

    def spend(self, usage: TokenUsage) -> None:
        """Add what an attempt or a check used that is not the answer."""
        self.spent = replace(
            self.spent,
            prompt_tokens=self.spent.prompt_tokens + usage.prompt_tokens,
            completion_tokens=self.spent.completion_tokens + usage.completion_tokens,
            cached_tokens=self.spent.cached_tokens + usage.cached_tokens,
        )

    def take_back(self, usage: TokenUsage) -> None:
        """What was added by `spend` is the answer's after all."""
        self.spent = replace(
            self.spent,
            prompt_tokens=self.spent.prompt_tokens - usage.prompt_tokens,
            completion_tokens=self.spent.completion_tokens - usage.completion_tokens,
            cached_tokens=self.spent.cached_tokens - usage.cached_tokens,
        )

    def counted(self, answer: Answer, model: str, prompt_estimate: int) -> Answer:
        """Have what an answer takes of engines added up. Returns it."""
        answer.call = Call(model, prompt_estimate)
        self.account.calls.append(answer.call)
        return answer

    def stop(self) -> None:
        """Free what the model at work holds, and checks of what it said."""
        for answer in (self.answer, *self.extra):
            if answer is not None:
                answer.close()
        self.extra.clear()

    def drop_parked(self) -> None:
        """Free the stream that was kept: a better one was found."""
        parked, self.parked = self.parked, None
        if parked is not None:
            parked.close()
            # It made more since it was charged.
            self.take_back(parked.charged)
            self.spend(self.used(parked.answer))

    def close(self) -> None:
        """Free all that the request holds of models."""
        self.stop()
        self.drop_parked()


def engine_request(course: Course, endpoint: Endpoint, request_id: str, headers: Mapping[str, str]) -> EngineRequest:
    """What the engine of the course's model is asked. Each asking has an id of its own: engines keep requests by it."""
    course.begun += 1
    return EngineRequest(
        request_id=request_id if course.begun == 1 else f"{request_id}-{course.begun}",
        endpoint=endpoint,
        body={**course.request.body, "model": course.decision.model},
        trace_headers=headers,
        tenant=course.tenant,
        max_prompt_tokens=course.contract.max_prompt_tokens,
        traffic=course.intent or "",
        log_experts=course.account.config.experts.log_tokens if course.knobs.experts else 0,
    )


def dispatch(services: Services, course: Course, request: EngineRequest) -> Answer:
    """The answer of the course's model, not begun yet; the course frees it."""
    limits = services.config.ingress.limits
    client = services.clients[course.decision.model]
    course.answer = client.answer(request, limits.max_buffered_bytes_per_stream)
    return course.counted(course.answer, course.decision.model, course.request.prompt_tokens_estimate)


def fall_back(course: Course, bind: Bind) -> bool:
    """Set the course on the next model that takes over and can keep the contract; whether there is one."""
    decision = course.decision.after_loss()
    while decision is not None:
        try:
            bound = bind(course.asked, decision)
        except ApiError:
            # It holds less than was asked for. That this is so is not the caller's mistake: on to the next.
            decision = decision.after_loss()
            continue
        course.turn_to(*bound)
        course.lost = True
        return True
    return False
