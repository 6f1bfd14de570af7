"""What is written down of a request, whatever its end, and that every decision is counted."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from cluster.keys import KeyLimits, mint
from cluster.records.record import DecisionRecord, told_signals, told_trail
from deployments.access.keys_file import KeysFile
from deployments.ingress import dispatch
from deployments.ingress.noting import Note
from tests.unit.ingress.bare_ingress import EVENT, BareIngress, bare_ingress, die
from tests.unit.ingress.judged import CHAT, chat, config, hang, in_turn, refuses, says, told
from tests.unit.ingress.test_verified import two_stages, yes
from tests.waiting import until


class Kept:
    """Keeps records for a test to look at."""

    def __init__(self) -> None:
        self.records: list[DecisionRecord] = []
        self.failures = 0

    def note(self, record: DecisionRecord) -> None:
        self.records.append(record)

    def failed(self) -> None:
        self.failures += 1

    @property
    def one(self) -> DecisionRecord:
        (record,) = self.records
        return record


def decided(ingress: BareIngress) -> float:
    """Decisions that the metrics counted."""
    text = ingress.services.metrics.render().decode()
    return sum(
        float(number) for number in re.findall(r"^pointsman_route_decisions_total\{.*\} (\S+)$", text, re.MULTILINE)
    )


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
async def ingress(state_dir: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[BareIngress]:
    monkeypatch.setattr(dispatch, "REPLY_GRACE_S", 0.05)
    async with bare_ingress(config(), state_dir) as made:
        yield BareIngress(replace(made.services, records=kept), made.clients, made.health)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_written_down(ingress: BareIngress, kept: Kept, stream: bool) -> None:
    reply = await ingress.post(CHAT, chat(model="dense", stream=stream), x_request_id="mine-1")
    record = kept.one
    assert (record.request_id, record.trace_id) == ("mine-1", reply.headers["x-pointsman-trace-id"])
    assert (record.endpoint, record.asked_model, record.model) == ("chat", "dense", "dense")
    assert (record.rule, record.status, record.error, record.attempts) == ("named_model", 200, None, 1)
    assert (record.streamed, record.finish_reason) == (stream, "stop")
    assert (record.ttft_s is not None) is stream
    assert 0 < record.total_s < 5 and abs(time.time() - record.at) < 5
    (one,) = record.cost.models
    assert (one.model, one.prompt_tokens, one.completion_tokens, one.estimated) == ("dense", 7, 2, False)
    assert told_signals(record.signals)["prompt_tokens"] == record.signals.prompt_tokens  # type: ignore[union-attr]
    assert decided(ingress) == 1


async def test_provenance_names_precision_cost_and_reason(ingress: BareIngress) -> None:
    reply = await ingress.post(CHAT, chat(model="dense"))
    assert reply.headers["x-pointsman-rule"] == "named_model"
    assert reply.headers["x-pointsman-reason"] == "model named by the caller"
    assert reply.headers["x-pointsman-precision"] == "compute=auto, kv=auto"
    assert reply.headers["x-pointsman-cost"] == "0"
    assert told(reply)["precision"] == {"compute": "auto", "kv": "auto"}
    assert told(reply)["cost"]["models"]["dense"]["completion_tokens"] == 2


async def test_every_attempt_is_paid_for_by_its_model(ingress: BareIngress, kept: Kept) -> None:
    ingress.clients["mini"].behaviour = in_turn(says("first", 0.1), says("second", 0.2))
    ingress.clients["dense"].behaviour = says("third", 0.8)
    reply = await ingress.post(CHAT, chat(temperature=1))
    record = kept.one
    assert (record.model, record.rule, record.confidence, record.attempts) == ("dense", "named_role_escalated", 0.8, 3)
    costs = {one.model: (one.calls, one.prompt_tokens, one.completion_tokens) for one in record.cost.models}
    assert costs == {"mini": (2, 20, 10), "dense": (1, 10, 5)}
    assert [step["outcome"] for step in told_trail(record.trail)] == ["requeried", "escalated", "accepted"]
    assert told(reply)["cost"]["models"].keys() == {"mini", "dense"}
    assert decided(ingress) == 2


async def test_checks_are_paid_for_by_the_verifier(ingress: BareIngress, kept: Kept) -> None:
    ingress.clients["mini"].behaviour = says("an answer", 0.9)
    ingress.clients["dense"].behaviour = says("yes", logprobs=yes(0.9))
    await ingress.post(CHAT, chat(pointsman={"verify": {"verifier": True}}))
    assert {one.model: one.prompt_tokens for one in kept.one.cost.models} == {"mini": 10, "dense": 10}
    assert kept.one.verified is True


async def test_both_stages_are_counted_and_paid_for(ingress: BareIngress, kept: Kept) -> None:
    ingress.clients["dense"].behaviour = in_turn(says("facts", 0.9), says("yes", logprobs=yes(0.9)))
    ingress.clients["sparse"].behaviour = says("well worded", 0.9)
    await ingress.post(CHAT, two_stages())
    record = kept.one
    assert (record.asked_model, record.model) == ("auto", "sparse")
    assert {one.model: one.calls for one in record.cost.models} == {"dense": 2, "sparse": 1}
    assert decided(ingress) == 2


async def test_a_model_that_was_lost_is_in_it(ingress: BareIngress, kept: Kept) -> None:
    ingress.clients["dense"].behaviour = die
    await ingress.post(CHAT, chat(model="strong", pointsman={"retries": 0}))
    record = kept.one
    assert (record.status, record.rule) == (200, "named_role_fallback")
    assert record.model != "dense" and record.cost.models[0].model == "dense"
    assert decided(ingress) == 2


async def test_embeddings_too(ingress: BareIngress, kept: Kept) -> None:
    await ingress.post("/v1/embeddings", {"model": "auto", "input": "Hello"})
    assert (kept.one.endpoint, kept.one.rule) == ("embedding", "auto_embedding")


async def test_what_is_refused_after_the_decision(ingress: BareIngress, kept: Kept) -> None:
    ingress.clients["dense"].behaviour = refuses(400)
    reply = await ingress.post(CHAT, chat(model="dense"))
    assert (reply.status, kept.one.status, kept.one.error) == (400, 400, "engine_refused")


async def test_what_its_contract_refuses(ingress: BareIngress, kept: Kept) -> None:
    reply = await ingress.post(CHAT, chat(max_tokens=100_000))
    assert reply.status == 400
    record = kept.one
    assert (record.status, record.error, record.attempts) == (400, reply.error["code"], 0)
    assert record.cost.models == () and record.precision is None
    assert decided(ingress) == 1


async def test_what_its_key_may_not(state_dir: Path, kept: Kept) -> None:
    limits = KeyLimits(requests_per_minute=1)
    minted = mint("a test", time.time(), secrets.token_bytes, tenant="acme", limits=limits)
    KeysFile(state_dir / "keys.jsonl").append(minted.record)
    async with bare_ingress(config(), state_dir) as made:
        ingress = BareIngress(replace(made.services, records=kept), made.clients, made.health)
        for _ in range(2):
            await ingress.post(CHAT, chat(model="dense"), authorization=f"Bearer {minted.key}")
    assert [record.status for record in kept.records] == [200, 429]
    assert {(record.tenant, record.key_name, record.key_id) for record in kept.records} == {
        ("acme", "a test", minted.record.id)
    }
    assert minted.key not in str([asdict(record) for record in kept.records])


async def test_when_nobody_is_there(ingress: BareIngress, kept: Kept) -> None:
    for client in ingress.clients.values():
        client.behaviour = die
    reply = await ingress.post(CHAT, chat(model="dense"))
    assert (reply.status, kept.one.status, kept.one.error) == (503, 503, reply.error["code"])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_who_leaves(ingress: BareIngress, kept: Kept, stream: bool) -> None:
    calls = hang(ingress.clients["dense"], EVENT, EVENT)
    task = asyncio.ensure_future(ingress.post(CHAT, chat(model="dense", stream=stream)))
    await until(lambda: bool(calls), 3)
    await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    record = kept.one
    assert (record.status, record.error) == (499, "client_gone")
    (one,) = record.cost.models
    assert one.estimated and one.prompt_tokens > 0 and one.completion_tokens == 2


async def test_without_a_decision_there_is_nothing_to_write(ingress: BareIngress, kept: Kept) -> None:
    for body in (chat(model="nobody"), {"model": "dense"}, b"{"):
        assert (await ingress.post(CHAT, body)).status in (400, 404)
    assert (await ingress.post("/v1/route", chat())).status == 200
    assert kept.records == [] and decided(ingress) == 0


async def test_a_record_that_cannot_be_made_fails_no_request_and_is_counted(
    ingress: BareIngress, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> DecisionRecord:
        raise RuntimeError

    monkeypatch.setattr(Note, "_record", broken)
    assert (await ingress.post(CHAT, chat(model="dense"))).status == 200
    assert (kept.records, kept.failures) == ([], 1)


async def test_nothing_of_what_was_said_is_in_it(ingress: BareIngress, kept: Kept) -> None:
    canary = "canary-" + secrets.token_hex(8)
    ingress.clients["mini"].behaviour = says(f"the answer is {canary}", 0.1)
    ingress.clients["dense"].behaviour = says(f"{canary} again", 0.2)
    knobs = {
        "passages": [{"id": "one", "text": canary}],
        "verify": {"regex": "^" + canary.replace("-", "_") + "$"},
        "allowed_models": ["mini", "dense", canary],
    }
    body = chat(messages=[{"role": "user", "content": canary}], pointsman=knobs, user=canary)
    await ingress.post(CHAT, body)
    record = kept.one
    shown = json.dumps([told_trail(record.trail), told_signals(record.signals)])
    assert canary not in shown and canary.replace("-", "_") not in shown
    assert canary not in str(replace(record, trail=(), signals=None))
