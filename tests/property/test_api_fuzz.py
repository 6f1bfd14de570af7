"""Ten thousand bodies: each is taken, or refused with a 4xx that names no text of the caller, within bounded time."""

import gc
import json
import random
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.api.chat import parse_chat
from cluster.api.completion import parse_completion
from cluster.api.embedding import parse_embedding
from cluster.api.errors import ApiError
from cluster.api.json_body import JsonObject, parse_json
from cluster.api.known_fields import REFUSED
from cluster.config.ingress import LimitsConfig
from tests.property.odd_bodies import CANARY, FIELDS, VALID, WORDS, odd_value

LIMITS = LimitsConfig()
PARSERS: dict[str, Callable[[JsonObject, LimitsConfig], object]] = {
    "chat": parse_chat,
    "completion": parse_completion,
    "embedding": parse_embedding,
}


@pytest.fixture(autouse=True)
def only_what_parsing_leaves_is_collected() -> Iterator[None]:
    """A collection of all that other tests have imported takes up to a second, and would count as time to parse."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


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
