"""Has answers checked: by comparators on a thread, by a verifier model, by the operator's hook."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cluster.api.answer_knobs import Verify
from cluster.api.errors import bad_request
from cluster.api.json_body import JsonObject
from cluster.api.prompt_size import estimate_tokens
from cluster.routing.snapshot import ModelState
from cluster.verification import compact
from cluster.verification.exact import ExactCheck
from cluster.verification.json_schema import JsonSchemaCheck
from cluster.verification.regex import RegexCheck
from cluster.verification.verdict import Check, Verdict, all_of
from deployments.channel.stream import ReplicaLostError, SlowReaderError
from deployments.engines.protocol import Endpoint, EngineReply, EngineRequest, TokenUsage
from deployments.ingress import failures
from deployments.ingress.course import Course
from deployments.ingress.dispatch import NoReplicaError, QueueFullError
from deployments.ingress.hooks import HookRunner
from deployments.ingress.services import Services
from deployments.ingress.tracing import RequestSpan


@dataclass(frozen=True, slots=True)
class Checks:
    """What answers to one request are checked against."""

    comparators: tuple[Check, ...] = ()
    verifier: bool = False
    hook: str | None = None

    @property
    def any(self) -> bool:
        """Whether anything is checked."""
        return bool(self.comparators) or self.verifier or self.hook is not None


class Verification:
    """The checks of one ingress."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._hooks = HookRunner()

    async def prepare(self, verify: Verify | None) -> Checks:
        """The checks that a request asks for and the operator's own. Raises `ApiError` 400 for what cannot be checked."""
        feedback = self._services.config.routing.feedback
        if verify is None:
            return Checks(hook=feedback.hook)
        if verify.verifier and not self._services.config.models_of(feedback.verifier_role):
            message = f"This cluster has no model of the role {feedback.verifier_role}; verify by another check."
            raise bad_request("pointsman.verify.verifier", message)
        comparators = await asyncio.to_thread(lambda: tuple(_comparators(verify)))
        return Checks(comparators, verify.verifier, feedback.hook)

    async def judge(self, checks: Checks, course: Course, texts: Sequence[str], span: RequestSpan) -> Verdict | None:
        """What the checks say of an answer with `texts`, one per choice. None: nothing is checked.

        The cheap ones come first; one that refuses spares the others.
        """
        if not checks.any:
            return None
        with span.verifying() as verify_span:
            verdict = await self._judge(checks, course, texts, span, verify_span.trace_headers)
            verify_span.verdict(verdict)
            return verdict

    async def _judge(
        self, checks: Checks, course: Course, texts: Sequence[str], span: RequestSpan, headers: dict[str, str]
    ) -> Verdict | None:
        if not texts:
            return Verdict(False, "answer", "the answer has no text")
        feedback = self._services.config.routing.feedback
        question = getattr(course.asked, "text", "")
        said: list[Verdict] = []
        if checks.comparators:
            compared = await asyncio.to_thread(
                lambda: [check.judge(text) for check in checks.comparators for text in texts]
            )
            said.extend(compared)
        for text in texts:
            if checks.hook is not None and all(verdict.ok for verdict in said):
                limit_s = _time_for(course, feedback.hook_timeout_s)
                said.append(await self._hooks.judge(checks.hook, question, text, limit_s))
        for text in texts:
            if checks.verifier and all(verdict.ok for verdict in said):
                said.append(await self.ask(compact.right_answer(question, text), course, span, headers, compact.NAME))
        return all_of(tuple(dict.fromkeys(said)))

    async def ask(
        self, body: JsonObject, course: Course, span: RequestSpan, headers: dict[str, str], name: str
    ) -> Verdict:
        """The judgement of the verifier model on `body`, under `name`. It is charged to the course, and freed with it."""
        services = self._services
        feedback = services.config.routing.feedback
        health = services.health.models()
        model = next(
            (one for one in services.config.models_of(feedback.verifier_role) if _ready(health.get(one))), None
        )
        if model is None:
            return Verdict(False, name, f"no model of the role {feedback.verifier_role} is ready")
        tokens = _tokens_of(body)
        if _spent(course) + tokens > feedback.max_tokens:
            return Verdict(False, name, f"asking the verifier would pass {feedback.max_tokens} tokens")
        limit_s = _time_for(course, feedback.verifier_timeout_s)
        try:
            async with asyncio.timeout(limit_s):
                reply = await self._asked(model, body, tokens, course, span.request_id, headers)
        except TimeoutError:
            return Verdict(False, name, f"the verifier took longer than {limit_s:.3g} s")
        except (NoReplicaError, QueueFullError, ReplicaLostError, SlowReaderError) as error:
            return Verdict(False, name, f"the verifier gave no answer ({type(error).__name__})")
        return _judgement(reply, feedback.verifier_threshold, name)

    async def _asked(
        self, model: str, body: JsonObject, tokens: int, course: Course, request_id: str, headers: dict[str, str]
    ) -> EngineReply:
        """What a model answers to `body`, of about `tokens` tokens; charged to the course."""
        services = self._services
        course.checked += 1
        request = EngineRequest(
            request_id=f"{request_id}-check-{course.checked}",
            endpoint=Endpoint.CHAT,
            body={**body, "model": model},
            trace_headers=headers,
            tenant=course.tenant,
        )
        answer = services.clients[model].answer(request, services.config.ingress.limits.max_buffered_bytes_per_stream)
        course.extra.append(course.counted(answer, model, tokens))
        try:
            while await answer.next() is not None:
                pass
            return failures.require_reply(answer.reply)
        finally:
            answer.close()
            usage = TokenUsage()
            if answer.reply is not None:
                usage = answer.reply.usage
            elif answer.replica_id is not None:
                usage = TokenUsage(prompt_tokens=tokens)
            if answer in course.extra:
                course.extra.remove(answer)
            course.spend(usage)
            course.check_tokens += usage.total
            services.metrics.spent(model, usage)


def _judgement(reply: EngineReply, threshold: float, name: str) -> Verdict:
    if reply.status != 200:
        return Verdict(False, name, f"the verifier answered with status {reply.status}")
    try:
        parsed = json.loads(reply.body)
    except ValueError:
        return Verdict(False, name, "the verifier's answer is not JSON")
    return compact.read_judgement(parsed, threshold, name)


def _time_for(course: Course, limit_s: float) -> float:
    """Seconds that a check may take: its own limit, and no more than the request has."""
    return max(0.0, min(limit_s, course.check_by_s - asyncio.get_running_loop().time()))


def _ready(state: ModelState | None) -> bool:
    """Whether a model can answer. One that is not known was taken out of the config after the request came."""
    return state is not None and state.healthy


def _spent(course: Course) -> int:
    """Tokens that a request took so far, the answer at hand included."""
    reply = None if course.answer is None else course.answer.reply
    return course.spent.total + (0 if reply is None else reply.usage.total)


def _tokens_of(body: JsonObject) -> int:
    """About how many tokens asking the verifier takes, its one word included."""
    return estimate_tokens(len(json.dumps(body["messages"], ensure_ascii=False).encode(errors="replace"))) + 1


def _comparators(verify: Verify) -> Iterable[Check]:
    if verify.json_schema is not None:
        yield JsonSchemaCheck(verify.json_schema)
    if verify.regex is not None:
        yield RegexCheck(verify.regex)
    if verify.exact is not None:
        yield ExactCheck(verify.exact)
