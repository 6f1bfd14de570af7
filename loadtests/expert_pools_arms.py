"""A model in one engine, and the same as a trunk with pool processes: how both are started."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from cluster.config.model import ModelConfig
from cluster.experts.pools import Holding, Pool, PoolMap, Replica, holding_to_json
from deployments.engines.protocol import Endpoint, EngineRequest
from deployments.engines.vllm_args import VllmLaunch
from deployments.engines.vllm_engine import VllmEngine
from deployments.experts.trunk_files import TrunkFiles
from deployments.models.kv_quality import Likeliest

if TYPE_CHECKING:
    from cluster.api.json_body import JsonObject

NAME = "measured"
"""What engines call their model."""
TOP = 20
"""Likeliest tokens that are compared at each position."""

Dtype = Literal["bfloat16", "float32"]


class MeasureError(RuntimeError):
    """Something failed, so the figures mean nothing."""


@dataclass(frozen=True, slots=True)
class Asked:
    """An answer as it is asked for."""

    prompt: Sequence[int]
    """Tokens."""
    tokens: int
    """Of the answer."""
    tell: bool = False
    """Tell the likeliest tokens at each position of the prompt."""


@contextlib.contextmanager
def pools(checkpoint: Path, holdings: Sequence[Holding], dtype: Dtype, folder: Path) -> Iterator[list[dict[str, Any]]]:
    """Pool processes with one thread each; gives what each says once it serves (`PoolServer.report` and its address).

    Raises `MeasureError` if one does not start.
    """
    (folder / "secret").write_bytes(os.urandom(32).hex().encode())
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(_pool(checkpoint, h, dtype, folder, f"p{n}")) for n, h in enumerate(holdings)]
        told = []
        for process in started:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise MeasureError("a pool process did not start")
            told.append(json.loads(line))
        yield told


@contextlib.contextmanager
def _pool(checkpoint: Path, holds: Holding, dtype: Dtype, folder: Path, name: str) -> Iterator[subprocess.Popen[str]]:
    (folder / f"{name}.json").write_text(json.dumps(holding_to_json(holds)))
    command = [sys.executable, "-m", "deployments.experts", "--name", name, "--checkpoint", str(checkpoint)]
    command += ["--holds", str(folder / f"{name}.json"), "--listen", f"unix:{folder / name}.sock", "--dtype", dtype]
    command += ["--secret-file", str(folder / "secret"), "--threads", "1"]
    environment = {**os.environ, "POINTSMAN_OWNER_PID": str(os.getpid())}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def trunk_files(folder: Path, holdings: Sequence[Holding], addresses: Sequence[str]) -> TrunkFiles:
    """Files of a trunk that works with pools of one replica each."""
    pools = zip(holdings, addresses, strict=True)
    made = tuple(Pool(f"pool{n}", (Replica(f"p{n}", at),), holds) for n, (holds, at) in enumerate(pools))
    (folder / "map.json").write_text(PoolMap(1, made).to_json())
    return TrunkFiles(folder / "map.json", folder / "secret", answer_s=20, outage_s=20, wake_s=20)


@contextlib.asynccontextmanager
async def running(checkpoint: Path, model: ModelConfig, trunk: TrunkFiles | None) -> AsyncIterator[VllmEngine]:
    """A started engine, a trunk if it has files for that. Raises `EngineStartError`."""
    before = dict(os.environ)
    engine = VllmEngine(VllmLaunch(NAME, checkpoint, model, trunk))
    try:
        try:
            await engine.start()
        finally:
            # Engines of one process tell their own by its environment.
            os.environ.clear()
            os.environ.update(before)
        yield engine
    finally:
        await engine.close()


async def answer(engine: VllmEngine, asked: Asked) -> list[Likeliest]:
    """An answer of exactly so many tokens; what is told of the prompt's tokens but the first. Raises `MeasureError`."""
    body: dict[str, Any] = {
        "model": NAME,
        "prompt": list(asked.prompt),
        "max_tokens": asked.tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
    if asked.tell:
        body["prompt_logprobs"] = TOP
    request = EngineRequest(uuid.uuid4().hex, Endpoint.COMPLETION, cast("JsonObject", body))
    reply = await engine.run(request, lambda _: None)
    if reply.status != 200:
        raise MeasureError(f"a request failed with status {reply.status}: {reply.body[:500].decode(errors='replace')}")
    answered = json.loads(reply.body)
    if answered["usage"]["completion_tokens"] != asked.tokens:
        raise MeasureError("an answer did not come whole")
    told = answered["choices"][0].get("prompt_logprobs") or ()
    return [{int(token): float(entry["logprob"]) for token, entry in at.items()} for at in told if at]


async def tokens_per_s(engine: VllmEngine, asked: Sequence[Asked]) -> float:
    """Of all answers at the same time, from the first request to the last token."""
    begun = time.perf_counter()
    await asyncio.gather(*(answer(engine, one) for one in asked))
    return sum(one.tokens for one in asked) / (time.perf_counter() - begun)
