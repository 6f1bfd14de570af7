"""Says with each answer where it came from: in headers, in the body, and at the end of a stream."""

from __future__ import annotations

import json
from dataclasses import dataclass

from cluster.routing.decision import RouteDecision
from deployments.engines.protocol import EngineReply
from deployments.ingress.dispatch import Answer

PREFIX = "x-pointsman-"


@dataclass(frozen=True, slots=True)
class Provenance:
    """What is known of one answer."""

    decision: RouteDecision
    trace_id: str
    earlier: int = 0
    """Attempts on other models, which were lost before this one took over."""

    def headers(self, answer: Answer, reply: EngineReply | None) -> dict[str, str]:
        """Response headers. `reply` is None at the head of a stream, when its end is not known yet."""
        headers = {
            f"{PREFIX}model": self.decision.model,
            f"{PREFIX}trace-id": self.trace_id,
            f"{PREFIX}attempts": str(self.earlier + answer.attempts),
        }
        if answer.engine is not None:
            headers[f"{PREFIX}engine"] = answer.engine
        if reply is not None and reply.usage.truncated_tokens:
            headers[f"{PREFIX}truncated-turns"] = str(reply.usage.truncated_turns)
            headers[f"{PREFIX}truncated-tokens"] = str(reply.usage.truncated_tokens)
        return headers

    def fields(self, answer: Answer, reply: EngineReply) -> dict[str, object]:
        """The `pointsman` object."""
        usage = reply.usage
        return {
            "model": self.decision.model,
            "role": self.decision.role,
            "reason": self.decision.reason,
            "rule": self.decision.reason_code,
            "score": self.decision.score,
            "engine": answer.engine,
            "attempts": self.earlier + answer.attempts,
            "trace_id": self.trace_id,
            "cached_tokens": usage.cached_tokens,
            "truncated_turns": usage.truncated_turns,
            "truncated_tokens": usage.truncated_tokens,
        }

    def add_to(self, body: bytes, answer: Answer, reply: EngineReply) -> bytes:
        """The JSON body with a `pointsman` object as its last member, without parsing it again."""
        if not body.endswith(b"}"):
            return body
        return body[:-1] + b',"pointsman":' + json.dumps(self.fields(answer, reply)).encode() + b"}"

    def comment(self, answer: Answer, reply: EngineReply) -> bytes:
        """The same at the end of a stream, as a comment: clients that do not know it skip it by the SSE rules."""
        return b": pointsman " + json.dumps(self.fields(answer, reply)).encode() + b"\n\n"
