"""Records for tests."""

from __future__ import annotations

import time
import uuid
from typing import Any

from cluster.cost import ModelCost, RequestCost
from cluster.records.precision_change import PrecisionChange
from cluster.records.record import DecisionRecord, Precision
from cluster.routing.decision import Candidate
from cluster.routing.reading import Reading
from cluster.routing.signals import RequestSignals


def cost(model: str = "dense", *, seconds: float = 2.0, money: float = 0.0) -> ModelCost:
    return ModelCost(model, 1, 10, 5, 4, seconds, money, estimated=False)


def record(**more: Any) -> DecisionRecord:
    fields: dict[str, Any] = {
        "id": uuid.uuid4().hex,
        "request_id": "request-1",
        "trace_id": "ab" * 16,
        "at": time.time(),
        "endpoint": "chat",
        "asked_model": "auto",
        "model": "dense",
        "role": "strong",
        "rule": "default",
        "reason": "auto: nothing speaks for another role",
        "status": 200,
        "tenant": "acme",
        "precision": Precision("auto", "fp8"),
        "candidates": (Candidate("dense", True, "serves strong", True, 0.75), Candidate("mini", False, "gone", False)),
        "signals": RequestSignals(False, 12, 8, intent=Reading("code", "lexical", 0.0, 1e-4)),
        "cost": RequestCost((cost(), cost("mini", seconds=0.5))),
    }
    return DecisionRecord(**{**fields, **more})


def change(**more: Any) -> PrecisionChange:
    """A switch of the KV precision that went well."""
    fields: dict[str, Any] = {
        "id": uuid.uuid4().hex,
        "at": time.time(),
        "model": "dense",
        "replica": "default#dense#abc123",
        "cause": "kv_usage",
        "reason": "93% of its KV cache is in use, 90% is pressure",
        "level_before": 1,
        "level": 2,
        "level_name": "fp8_kv",
        "kv_before": "bfloat16",
        "kv_after": "fp8",
        "pause_s": 0.25,
        "preempted": 3,
        "tokens": 410,
        "blocks_before": 22,
        "blocks_after": 45,
    }
    return PrecisionChange(**{**fields, **more})
