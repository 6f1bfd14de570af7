"""What an answer says of the experts that it used."""

from __future__ import annotations

from typing import Final

from cluster.experts.load import ExpertLog, ExpertShape, ExpertUse
from cluster.experts.pool_use import PoolUse
from deployments.engines.protocol import EngineReply
from deployments.ingress.dispatch import Answer

_TOLD_NOTHING: Final = "the engine told nothing of this request"
_DIGITS: Final = 4


def experts_told(answer: Answer | None, reply: EngineReply) -> dict[str, object] | None:
    """The part `experts` of the `pointsman` object; None: there is nothing to say.

    A summary where the engine tells. If the request wants its tokens' experts: all of it, or why it cannot be had. And what
    pools of experts did, where the engine has some.
    """
    told = _experts(answer, reply.experts)
    if reply.pools is None:
        return told
    return {**(told or {}), "pools": _pools(reply.pools)}


def is_degraded(reply: EngineReply) -> bool:
    """Whether other experts stood in for some that the answer's tokens should have gone to."""
    return reply.pools is not None and reply.pools.degraded_rows > 0


def _experts(answer: Answer | None, use: ExpertUse | None) -> dict[str, object] | None:
    asked = answer is not None and answer.lists_experts
    if use is None:
        reason = "; ".join(answer.expert_blockers) if answer is not None else ""
        return {"unavailable": reason or _TOLD_NOTHING} if asked else None
    summary: dict[str, object] = {
        "tokens": use.tokens,
        "distinct": use.distinct,
        "entropy": round(use.entropy, _DIGITS),
    }
    return _full(use, summary) if asked else summary


def _pools(use: PoolUse) -> dict[str, object]:
    rows = use.degraded_rows
    told: dict[str, object] = {
        "wait_s": round(use.wait_s, _DIGITS),
        "resent_rows": use.resent_rows,
        "degraded_rows": rows,
        "degraded": rows > 0,
    }
    if rows:
        often = "once" if rows == 1 else f"{rows} times"
        told["degraded_reason"] = (
            "Some of the model's experts could not be reached in time, so the next best ones stood in for them, "
            f"{often} (a token counts once for each layer). The answer may be worse than the model's own."
        )
    return told


def _full(use: ExpertUse, summary: dict[str, object]) -> dict[str, object]:
    shape = use.shape
    return {
        "layers": shape.layers,
        "experts": shape.experts,
        "top_k": shape.top_k,
        **summary,
        "top": [(layer, expert, round(share, _DIGITS)) for layer, expert, share in use.top],
        "logs": [_log(log, shape) for log in use.logs],
    }


def _log(log: ExpertLog, shape: ExpertShape) -> dict[str, object]:
    return {"tokens": log.tokens, "experts": log.array(shape).tolist(), "left_out": log.left_out}
