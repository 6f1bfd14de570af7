"""Ten thousand bodies: each is taken, or refused with a 4xx that names no text of the caller, within bounded time."""

import json
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.api.chat import parse_chat
from cluster.api.completion import parse_completion
from cluster.api.embedding import parse_embedding
from cluster.api.errors import ApiError
from cluster.api.json_body import JsonObject, JsonValue, parse_json
from cluster.api.known_fields import CHAT, COMPLETION, EMBEDDING, REFUSED
from cluster.config.ingress import LimitsConfig

LIMITS = LimitsConfig()
CANARY = "canary-91be"
PARSERS: dict[str, Callable[[JsonObject, LimitsConfig], object]] = {
    "chat": parse_chat,
    "completion": parse_completion,
    "embedding": parse_embedding,
}
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


def judge(endpoint: str, raw: bytes) -> bool:
    """Whether the body is taken; fails the test for anything but a proper refusal."""
    refusal: ApiError | None = None
    started = time.thread_time()
    try:
        PARSERS[endpoint](parse_json(raw, LIMITS), LIMITS)
    except ApiError as error:
        refusal = error
    assert time.thread_time() - started < 0.5
    if refusal is None:
        return True
    sent = json.loads(refusal.body())["error"]
    assert 400 <= refusal.status < 500
    assert sent["message"]
    assert sent["code"]
    assert CANARY not in refusal.body().decode()
    assert len(refusal.body()) < 1500
    return False


@pytest.mark.parametrize("endpoint", list(PARSERS))
@pytest.mark.parametrize("part", range(2))
def test_bodies_with_one_to_three_odd_fields(endpoint: str, part: int) -> None:
    rng = random.Random(f"{endpoint}-{part}")
    taken = 0
    for _ in range(1250):
        body = dict(VALID[endpoint])
        for _ in range(rng.randrange(1, 4)):
            field = rng.choice([*FIELDS[endpoint], *FIELDS[endpoint], *REFUSED, CANARY])
            body[field] = odd_value(rng)
        taken += judge(endpoint, json.dumps(body).encode())
    assert 0 < taken < 1250


@pytest.mark.parametrize("endpoint", list(PARSERS))
def test_damaged_bytes(endpoint: str) -> None:
    rng = random.Random(endpoint)
    whole = json.dumps(VALID[endpoint] | {"stop": ["\u00e9", "x"], "seed": 5, "logit_bias": {"5": 1.5}}).encode()
    for _ in range(500):
        raw = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(raw))
            raw[at : at + rng.randrange(2)] = bytes(
                rng.choice(b'"{}[],:\\0e-\xff\x00') for _ in range(rng.randrange(3))
            )
        judge(endpoint, bytes(raw))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("endpoint", list(PARSERS))
@settings(max_examples=340, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_bodies_of_any_shape(endpoint: str, data: st.DataObject) -> None:
    fields = data.draw(st.dictionaries(st.sampled_from(FIELDS[endpoint]), JSON, max_size=4))
    judge(endpoint, json.dumps(VALID[endpoint] | fields).encode("utf-8", "surrogatepass"))
