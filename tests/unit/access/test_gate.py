from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cluster.api.errors import ApiError
from cluster.config.base import Kind
from cluster.config.cluster import ClusterConfig
from cluster.config.ingress import KeysConfig
from cluster.config.model import ModelConfig
from cluster.keys import KeyLimits, KeysFileError, Minted, mint
from deployments.access import gate as gate_module
from deployments.access.gate import Gate
from deployments.access.keys_file import KeysFile
from deployments.access.usage import read_usage
from deployments.engines.protocol import TokenUsage
from deployments.paths import usage_path
from tests.waiting import until


def config(required: bool | None) -> ClusterConfig:
    model = ModelConfig(kind=Kind.DENSE, roles=("strong", "fast", "code", "fluency"), source="embedded:dense")
    return ClusterConfig(models={"dense": model}, keys=KeysConfig(required=required))


def new_key(state_dir: Path, **limits: int) -> Minted:
    minted = mint("someone", time.time(), secrets.token_bytes, limits=KeyLimits(**limits))
    KeysFile(state_dir / "keys.jsonl").append(minted.record)
    return minted


def bearer(minted: Minted) -> list[str]:
    return [f"Bearer {minted.key}"]


@pytest.fixture
async def gate(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gate]:
    monkeypatch.setattr(gate_module, "REFRESH_S", 0.01)
    monkeypatch.setattr(gate_module, "FLUSH_S", 0.01)
    gate = Gate(config(required=True), state_dir)
    gate.start()
    yield gate
    await gate.stop()


async def test_only_a_valid_key_passes(gate: Gate, state_dir: Path) -> None:
    minted = new_key(state_dir)
    await until(lambda: gate._live.records)
    found = gate.authenticate(bearer(minted))
    assert found is not None
    assert found.id == minted.record.id
    stranger = mint("x", 0.0, secrets.token_bytes)
    for wrong in (
        [],
        ["Bearer x"],
        ["Basic abc"],
        bearer(stranger),
        bearer(minted) * 2,
        ["Bearer " + "a" * 8192],
        ["Bearer ' OR 1=1 --"],
        [minted.key],
        [f"Bearer {minted.key[:-1]}{'A' if minted.key[-1] != 'A' else 'B'}"],
    ):
        with pytest.raises(ApiError) as refused:
            gate.authenticate(wrong)
        assert refused.value.status == 401
        assert minted.key not in refused.value.message


async def test_a_key_is_added_and_revoked_while_the_gate_runs(gate: Gate, state_dir: Path) -> None:
    minted = new_key(state_dir)
    await until(lambda: minted.record.id in gate._live.records, timeout_s=1.0)
    assert gate.authenticate(bearer(minted))
    KeysFile(state_dir / "keys.jsonl").revoke(minted.record.id, time.time())
    await until(lambda: gate._live.records[minted.record.id].revoked, timeout_s=1.0)
    with pytest.raises(ApiError):
        gate.authenticate(bearer(minted))


def test_where_no_keys_are_asked_for(state_dir: Path) -> None:
    known, gone = new_key(state_dir), new_key(state_dir)
    KeysFile(state_dir / "keys.jsonl").revoke(gone.record.id, 1.0)
    gate = Gate(config(required=None), state_dir)
    assert gate.authenticate([]) is None
    # What the `openai` client sends where its user has no key.
    assert gate.authenticate(["Bearer EMPTY"]) is None
    found = gate.authenticate(bearer(known))
    assert found is not None
    for wrong in (bearer(gone), bearer(mint("x", 0.0, secrets.token_bytes)), bearer(known) * 2):
        with pytest.raises(ApiError):
            gate.authenticate(wrong)


async def test_limits_and_usage_of_a_key(gate: Gate, state_dir: Path) -> None:
    key = new_key(state_dir, requests_per_minute=2, concurrency=1).record
    async with gate.admit(key, 10) as admitted:
        assert admitted.headers["x-ratelimit-limit-requests"] == "2"
        with pytest.raises(ApiError):
            async with gate.admit(key, 10):
                pass
        gate.refused(key)
        admitted.spent(TokenUsage(prompt_tokens=8, completion_tokens=3, cached_tokens=4))
    used = gate.usage_of(key)
    assert (used["requests"], used["rejected"], used["prompt_tokens"], used["completion_tokens"]) == (1, 1, 8, 3)
    assert used["key_id"] == key.id
    await until(lambda: key.id in read_usage(usage_path(state_dir)))
    async with gate.admit(None, 10**9) as anonymous:
        anonymous.spent(TokenUsage(prompt_tokens=1))
    gate.refused(None)


async def test_a_key_reads_no_more_bodies_at_once_than_it_may_have_requests(gate: Gate, state_dir: Path) -> None:
    key = new_key(state_dir, concurrency=2).record
    with gate.reading(key):
        async with gate.admit(key, 1):
            with pytest.raises(ApiError) as refused, gate.reading(key):
                pass
            assert refused.value.status == 429
            assert "2 requests at once" in refused.value.message
        with gate.reading(key), gate.reading(None), gate.reading(new_key(state_dir).record):
            pass
    assert gate._reading == {}


async def test_stopping_writes_what_is_left(state_dir: Path) -> None:
    gate = Gate(config(required=True), state_dir)
    gate.start()
    await asyncio.sleep(0)
    key = new_key(state_dir).record
    async with gate.admit(key, 1):
        pass
    await gate.stop()
    await gate.stop()
    assert read_usage(usage_path(state_dir))[key.id].requests == 1


def test_a_keys_file_that_cannot_be_read_stops_the_start(state_dir: Path) -> None:
    (state_dir / "keys.jsonl").write_text("{")
    (state_dir / "keys.jsonl").chmod(0o600)
    with pytest.raises(KeysFileError, match="line 1"):
        Gate(config(required=True), state_dir)
