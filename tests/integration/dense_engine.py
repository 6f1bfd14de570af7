"""The embedded dense model on a real vLLM engine, small enough to start in about 20 s."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from cluster.config.base import Kind
from cluster.config.engine import EngineConfig
from cluster.config.model import ModelConfig
from deployments.engines.protocol import Endpoint, EngineReply, EngineRequest
from deployments.engines.vllm_args import VllmLaunch
from deployments.engines.vllm_engine import VllmEngine
from deployments.models.sources import resolve

MAX_MODEL_LEN = 1024

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}


def dense_config(**engine: Any) -> ModelConfig:
    settings: dict[str, Any] = {
        "max_model_len": MAX_MODEL_LEN,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 1024,
        "kv_cache_bytes": 64 * 2**20,
        "enforce_eager": True,
        "tool_parser": "hermes",
    }
    return ModelConfig(
        kind=Kind.DENSE, roles=("strong",), source="embedded:dense", engine=EngineConfig(**settings | engine)
    )


@contextlib.asynccontextmanager
async def running_dense(**engine: Any) -> AsyncIterator[VllmEngine]:
    """A started engine. What it sets in the environment is taken back."""
    before = dict(os.environ)
    path = resolve("embedded:dense", None, lambda _message, _done: None)
    started = VllmEngine(VllmLaunch("dense", path, dense_config(**engine)))
    try:
        await started.start()
        yield started
    finally:
        await started.close()
        os.environ.clear()
        os.environ.update(before)


@dataclass
class Call:
    """One request and what came of it."""

    engine: VllmEngine
    events: list[bytes] = field(default_factory=list)

    async def run(self, endpoint: Endpoint, trace: dict[str, str] | None = None, **body: Any) -> EngineReply:
        request = EngineRequest(uuid.uuid4().hex, endpoint, {"model": "dense", **body}, trace or {})
        return await self.engine.run(request, self.events.append)

    async def chat(self, text: str, **body: Any) -> EngineReply:
        return await self.run(Endpoint.CHAT, **{"messages": [user(text)], "temperature": 0, **body})

    @property
    def chunks(self) -> list[dict[str, Any]]:
        return [json.loads(part[6:]) for part in b"".join(self.events).decode().split("\n\n") if part]

    @property
    def text(self) -> str:
        return "".join(c["choices"][0]["delta"].get("content") or "" for c in self.chunks if c["choices"])


def answer_of(reply: EngineReply) -> dict[str, Any]:
    assert reply.status == 200, reply.body
    answer: dict[str, Any] = json.loads(reply.body)
    return answer


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def long_chat(turns: int) -> list[dict[str, Any]]:
    chat = [{"role": "system", "content": "You answer briefly."}]
    for number in range(turns):
        chat += [user(f"Question {number}: why?"), {"role": "assistant", "content": f"Because of {number}. " * 3}]
    return [*chat, user("And the last question?")]


async def prompt_ids(engine: VllmEngine, **body: Any) -> list[int]:
    """The token ids that the engine would be given."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    request = ChatCompletionRequest.model_validate(engine._neutralise({"model": "dense", **body}))
    _, (rendered,) = await engine._layer.renderer.render_chat(request)
    return list(rendered["prompt_token_ids"])
