"""The encoder tells the intent, and the words do where it cannot."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.config.cluster import ClusterConfig
from cluster.routing.intent_prototypes import read_prototypes
from deployments.channel.stream import TokenStream
from deployments.engines.protocol import EngineReply
from deployments.ingress.dispatch import NoReplicaError
from deployments.replica.spec import ReplicaCall
from tests.unit.ingress.bare_ingress import BareIngress, bare_ingress

MODELS = {
    "dense": {"kind": "dense", "roles": ["strong", "fast"], "source": "embedded:dense"},
    "encoder": {"kind": "encoder", "roles": ["embedding"], "source": "embedded:encoder"},
}
ASKED = "Hmm, zork blorb?"
"""No sign of any intent."""


@asynccontextmanager
async def ingress(state_dir: Path, intent: dict[str, Any] | None = None, **more: Any) -> AsyncIterator[BareIngress]:
    routing = {"code_role": "strong", "intent": {"deadline_s": 0.5} | (intent or {})}
    config = ClusterConfig.model_validate({"models": MODELS, "routing": routing} | more)
    async with bare_ingress(config, state_dir) as made:
        yield made


def vector_of(intent: str) -> bytes:
    prototypes = read_prototypes()
    vector = prototypes.vectors[prototypes.intents.index(intent)].astype("<f4").tobytes()
    return json.dumps({"data": [{"embedding": base64.b64encode(vector).decode()}]}).encode()


async def intent_told(made: BareIngress, text: str = ASKED, model: str = "auto") -> str:
    reply = await made.post("/v1/route", {"model": model, "messages": [{"role": "user", "content": text}]})
    assert reply.status == 200, reply.body
    found: str = json.loads(reply.body)["signals"]["intent"]
    return found


def answering(made: BareIngress, intent: str, delay_s: float = 0.0) -> list[str]:
    """The encoder answers with the prototype of `intent`; what it is asked."""
    asked: list[str] = []

    def encode(stream: TokenStream, call: ReplicaCall) -> None:
        asked.append(str(call.request.body["input"]))
        asyncio.get_running_loop().call_later(delay_s, stream.finish, EngineReply(200, vector_of(intent)))

    made.clients["encoder"].behaviour = encode
    return asked


async def test_the_encoder_tells_it_and_is_asked_once(state_dir: Path) -> None:
    async with ingress(state_dir) as made:
        asked = answering(made, "ideation")
        assert await intent_told(made) == "ideation (encoder)"
        assert await intent_told(made) == "ideation (encoder)"
        assert await intent_told(made, "x" * 1000 + "?") == "ideation (encoder)"
        assert asked == [ASKED, "x" * 256]


async def test_a_named_model_is_not_worth_asking_for(state_dir: Path) -> None:
    async with ingress(state_dir) as made:
        asked = answering(made, "ideation")
        assert await intent_told(made, model="dense") == "missing"
        assert asked == []


async def test_a_late_encoder_is_named_in_the_reason_and_left_alone_for_a_while(state_dir: Path) -> None:
    async with ingress(state_dir, {"deadline_s": 0.02, "misses_until_pause": 2, "pause_s": 60}) as made:
        asked = answering(made, "ideation", delay_s=5.0)
        for number in range(2):
            told = await made.post(
                "/v1/route", {"model": "auto", "messages": [{"role": "user", "content": f"zork {number}"}]}
            )
            assert "intent by its words, encoder took longer than 20 ms" in json.loads(told.body)["reason"]
        assert await intent_told(made, "Summarize this.") == "summary (lexical: encoder too slow of late)"
        assert len(asked) == 2


async def test_no_more_than_so_many_wait_for_it(state_dir: Path) -> None:
    async with ingress(state_dir, {"max_in_flight": 2}) as made:
        asked = answering(made, "math", delay_s=0.2)
        told = await asyncio.gather(*(intent_told(made, f"Summarize number {number}") for number in range(5)))
        assert sorted(told) == ["math (encoder)"] * 2 + ["summary (lexical: encoder busy)"] * 3
        assert len(asked) == 2


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (NoReplicaError("encoder"), "encoder not ready"),
        (RuntimeError("what nobody foresaw"), "encoder failed"),
        (EngineReply(503, b"{}"), "encoder not ready"),
        (EngineReply(200, b'{"data": []}'), "the encoder's answer cannot be read"),
        (EngineReply(200, b"no JSON"), "the encoder's answer cannot be read"),
    ],
)
async def test_an_encoder_that_fails_leaves_it_to_the_words(
    state_dir: Path, what: Exception | EngineReply, why: str
) -> None:
    async with ingress(state_dir) as made:

        def fail(stream: TokenStream, _call: ReplicaCall) -> None:
            if isinstance(what, EngineReply):
                stream.finish(what)
            else:
                stream.fail(what)

        made.clients["encoder"].behaviour = fail
        assert await intent_told(made, "Summarize this.") == f"summary (lexical: {why})"


async def test_prototypes_of_another_encoder_are_not_used(state_dir: Path) -> None:
    models = MODELS | {"encoder": MODELS["encoder"] | {"source": "path:/elsewhere"}}
    async with ingress(state_dir, models=models) as made:
        asked = answering(made, "math")
        assert await intent_told(made, "Summarize this.") == "summary (lexical: prototypes are of embedded:encoder)"
        assert asked == []


async def test_it_can_be_left_at_the_words(state_dir: Path) -> None:
    async with ingress(state_dir, {"encode": False}) as made:
        assert await intent_told(made, "Summarize this.") == "summary (lexical)"
