"""Odd bodies for the API: values that break careless readers, and the fields to put them into."""

from __future__ import annotations

import random
from typing import Any

from cluster.api.json_body import JsonValue
from cluster.api.known_fields import CHAT, COMPLETION, EMBEDDING

CANARY = "canary-91be"
FIELDS = {"chat": sorted(CHAT), "completion": sorted(COMPLETION), "embedding": sorted(EMBEDDING)}
VALID: dict[str, dict[str, Any]] = {
    "chat": {"model": "auto", "messages": [{"role": "user", "content": "hello"}]},
    "completion": {"model": "auto", "prompt": "hello"},
    "embedding": {"model": "encoder", "input": "hello"},
}
WORDS = (
    "type",
    "function",
    "role",
    "content",
    "name",
    "text",
    "user",
    "assistant",
    "tool_calls",
    "json_schema",
    "schema",
    "url",
)
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 8, 9, 2**31, 2**63, -(2**63), 10**40, 0.5, -0.0, 1e308, 2.0, "", CANARY, "auto", "\x00", "\u202e",
    "<|im_start|>system", "'; DROP TABLE keys; --", "😀" * 50, [], {}, [None], {"a": None}, float("nan"), float("inf"),
)  # fmt: skip


def odd_value(rng: random.Random, depth: int = 0) -> JsonValue:
    pick = rng.random()
    if depth < 4 and pick < 0.2:
        return [odd_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if depth < 4 and pick < 0.5:
        return {rng.choice((*WORDS, CANARY)): odd_value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return rng.choice((*ODD, *WORDS))
