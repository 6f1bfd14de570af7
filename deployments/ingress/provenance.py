"""Says with each answer where it came from: in headers, in the body, and at the end of a stream."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import msgspec

from cluster.records.record import Precision
from cluster.routing.confidence import TokenConfidence
from cluster.routing.decision import RouteDecision
from cluster.verification.verdict import Verdict
from deployments.engines.protocol import EngineReply, TokenUsage
from deployments.ingress.account import Account
from deployments.ingress.dispatch import Answer
from deployments.ingress.expert_use import experts_told, is_degraded

PREFIX = "x-pointsman-"
MAX_HEADER_CHARS = 512


@dataclass(slots=True)
class Judgement:
    """What is known of an answer that was judged."""

    trail: list[dict[str, object]] = field(default_factory=list)
    """The attempts in their order: model, temperature, confidence, outcome, why."""
    confidence: float | None = None
    """Of what is sent, 0 to 1; None: not known."""
    verdict: Verdict | None = None
    """Of what is sent; None: nothing was checked."""
    citations: tuple[str, ...] | None = None
    """Ids of the passages that it rests on; None: it is a model's own answer."""
    spent: TokenUsage = field(default_factory=TokenUsage)
    """What attempts and checks used beside the answer itself."""

    def fields(self) -> dict[str, object]:
        """Its part of the `pointsman` object."""
        verdict = self.verdict
        told: dict[str, object] = {
            "confidence": None if self.confidence is None else round(self.confidence, 4),
            "verified": None if verdict is None else verdict.ok,
            "verdict": None if verdict is None else shown(verdict),
            "trail": self.trail,
            "tokens_beside": self.spent.prompt_tokens + self.spent.completion_tokens,
        }
        if self.citations is not None:
            told["citations"] = self.citations
        return told


def score_of(confidence: TokenConfidence | None) -> float | None:
    """The one figure of a confidence, 0 to 1; None: not known."""
    return None if confidence is None else confidence.score


def shown(verdict: Verdict) -> dict[str, object]:
    """A verdict, as callers see it."""
    score = None if verdict.score is None else round(verdict.score, 4)
    return {"name": verdict.name, "ok": verdict.ok, "reason": verdict.reason, "score": score}


@dataclass(frozen=True, slots=True)
class Provenance:
    """What is known of one answer."""

    decision: RouteDecision
    trace_id: str
    earlier: int = 0
    """Attempts on other replicas, which were lost or left before this one took over."""
    judgement: Judgement | None = None
    """None: the answer was not judged."""
    account: Account | None = None
    """What the request takes of engines; None: nobody adds it up."""

    def headers(self, answer: Answer | None, reply: EngineReply | None) -> dict[str, str]:
        """Response headers. `reply` is None at the head of a stream, when its end is not known yet."""
        headers = {
            f"{PREFIX}model": self.decision.model,
            f"{PREFIX}trace-id": self.trace_id,
            f"{PREFIX}attempts": str(self._attempts(answer)),
            f"{PREFIX}rule": self.decision.reason_code,
            f"{PREFIX}reason": _in_header(self.decision.reason),
        }
        precision = self._precision(answer)
        if precision is not None:
            headers[f"{PREFIX}precision"] = str(precision)
        level = self.decision.level
        if level is not None:
            headers[f"{PREFIX}level"] = f"{level.level} {level.name}"
            if level.changes:
                headers[f"{PREFIX}changed"] = _in_header("; ".join(level.changed()))
        if self.account is not None and reply is not None:
            headers[f"{PREFIX}cost"] = f"{self.account.cost().cost:.6g}"
        if answer is not None and answer.engine is not None:
            headers[f"{PREFIX}engine"] = answer.engine
        if answer is not None and answer.replica_id is not None:
            headers[f"{PREFIX}replica"] = answer.replica_id
        if self.judgement is not None and self.judgement.confidence is not None:
            headers[f"{PREFIX}confidence"] = f"{self.judgement.confidence:.4f}"
        if reply is not None and reply.usage.truncated_tokens:
            headers[f"{PREFIX}truncated-turns"] = str(reply.usage.truncated_turns)
            headers[f"{PREFIX}truncated-tokens"] = str(reply.usage.truncated_tokens)
        if reply is not None and is_degraded(reply):
            headers[f"{PREFIX}degraded"] = "experts"
        return headers

    def fields(self, answer: Answer | None, reply: EngineReply) -> dict[str, object]:
        """The `pointsman` object, but for what `experts_told` adds to it."""
        usage = reply.usage
        return {
            "model": self.decision.model,
            "role": self.decision.role,
            "reason": self.decision.reason,
            "rule": self.decision.reason_code,
            "score": self.decision.score,
            "engine": None if answer is None else answer.engine,
            "replica": None if answer is None else answer.replica_id,
            "replica_reason": None if answer is None else answer.replica_reason,
            "attempts": self._attempts(answer),
            "trace_id": self.trace_id,
            "cached_tokens": usage.cached_tokens,
            "truncated_turns": usage.truncated_turns,
            "truncated_tokens": usage.truncated_tokens,
            **self._memory(answer, reply),
            **({} if self.account is None else _spent(self.account)),
            **({} if self.judgement is None else self.judgement.fields()),
        }

    def add_to(self, body: bytes, answer: Answer | None, reply: EngineReply) -> bytes:
        """The JSON body with a `pointsman` object as its last member, without parsing it again."""
        if not body.endswith(b"}"):
            return body
        return body[:-1] + b',"pointsman":' + self._encoded(answer, reply) + b"}"

    def comment(self, answer: Answer | None, reply: EngineReply) -> bytes:
        """The same at the end of a stream, as a comment: clients that do not know it skip it by the SSE rules."""
        return b": pointsman " + self._encoded(answer, reply) + b"\n\n"

    def _encoded(self, answer: Answer | None, reply: EngineReply) -> bytes:
        encoded = json.dumps(self.fields(answer, reply)).encode()
        experts = experts_told(answer, reply)
        # Apart, and by the faster encoder: a list of experts can have hundreds of thousands of numbers.
        return encoded if experts is None else encoded[:-1] + b', "experts": ' + msgspec.json.encode(experts) + b"}"

    def _precision(self, answer: Answer | None) -> Precision | None:
        """Of the model that answers; None: it has none here."""
        by_config = None if self.account is None else self.account.precision(self.decision.model)
        return by_config if by_config is None or answer is None else answer.precision(by_config)

    def _memory(self, answer: Answer | None, reply: EngineReply) -> dict[str, object]:
        """Precision, level, and what the request met in the KV cache."""
        precision, level, kv = self._precision(answer), self.decision.level, reply.kv
        told: dict[str, object] = {}
        if self.account is not None:
            told["precision"] = None if precision is None else {"compute": precision.compute, "kv": precision.kv}
        if level is not None:
            told["level"] = {"number": level.level, "name": level.name, "changed": level.changed()}
        told["kv"] = {
            "hit_tokens": reply.usage.cached_tokens,
            "recomputed_tokens": kv.recomputed_tokens,
            "preemptions": kv.preemptions,
            "switches": kv.switches,
        }
        return told

    def _attempts(self, answer: Answer | None) -> int:
        return self.earlier + (0 if answer is None else answer.attempts)


def _in_header(text: str) -> str:
    """Words as a header can carry them; the body has them in full."""
    return "".join(character if " " <= character <= "~" else "?" for character in text[:MAX_HEADER_CHARS])


def _spent(account: Account) -> dict[str, object]:
    """What the whole request cost so far."""
    cost = account.cost()
    return {
        "cost": {
            "total": cost.cost,
            "engine_seconds": round(cost.engine_seconds, 4),
            "models": {
                one.model: {
                    "prompt_tokens": one.prompt_tokens,
                    "completion_tokens": one.completion_tokens,
                    "engine_seconds": round(one.engine_seconds, 4),
                    "cost": one.cost,
                }
                for one in cost.models
            },
        },
    }
