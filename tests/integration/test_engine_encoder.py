"""The encoder engine with the embedded encoder, against the reference implementation."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cluster.config.base import Kind
from cluster.config.engine import EngineConfig
from cluster.config.model import ModelConfig
from deployments.engines.encoder import EncoderEngine
from deployments.engines.protocol import Endpoint, EngineDeadError, EngineReply, EngineRequest, EngineStartError
from deployments.models.sources import resolve
from tests.waiting import until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.filterwarnings("ignore")]

MEMORY_LIMIT = 600 * 10**6
TEXTS = (
    "The capital of France is Paris.",
    "def quick_sort(items): return sorted(items)",
    "Ünïcödé, 漢字 und Emoji 🙂",
    "a",
    "The quick brown fox jumps over the lazy dog. " * 20,
    "Line one\nline two\ttabbed <|im_start|> [SEP] [MASK]",
)
MODEL = ModelConfig(
    kind=Kind.ENCODER, roles=("embedding",), source="embedded:encoder", engine=EngineConfig(max_num_seqs=8)
)


@pytest.fixture(scope="module")
def path() -> Path:
    return resolve("embedded:encoder", None, lambda _message, _done: None)


@pytest.fixture(scope="module")
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    before = trace._TRACER_PROVIDER
    trace._TRACER_PROVIDER = provider
    yield exporter
    trace._TRACER_PROVIDER = before


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(path: Path, spans: InMemorySpanExporter) -> AsyncIterator[EncoderEngine]:
    before = dict(os.environ)
    started = EncoderEngine("encoder", path, MODEL)
    await started.start()
    yield started
    await started.close()
    os.environ.clear()
    os.environ.update(before)


async def embed(engine: EncoderEngine, given: Any, endpoint: Endpoint = Endpoint.EMBEDDING, **body: Any) -> EngineReply:
    return await engine.run(EngineRequest("r", endpoint, {"input": given, **body}), lambda _: None)


def vectors(reply: EngineReply) -> np.ndarray:
    assert reply.status == 200, reply.body
    return np.array([item["embedding"] for item in json.loads(reply.body)["data"]])


def error(reply: EngineReply) -> dict[str, Any]:
    assert reply.status == 400
    found: dict[str, Any] = json.loads(reply.body)["error"]
    return found


async def test_vectors_equal_the_references(engine: EncoderEngine, path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(path), device="cpu").encode(list(TEXTS))
    ours = vectors(await embed(engine, list(TEXTS)))
    assert np.abs(ours - reference).max() < 1e-3
    one_by_one = np.concatenate([vectors(await embed(engine, text)) for text in TEXTS])
    assert np.abs(one_by_one - reference).max() < 1e-3


async def test_both_encodings_say_the_same(engine: EncoderEngine) -> None:
    numbers = vectors(await embed(engine, list(TEXTS), encoding_format="float"))
    reply = await embed(engine, list(TEXTS), encoding_format="base64", dimensions=384)
    packed = [
        np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4") for item in json.loads(reply.body)["data"]
    ]
    assert np.array_equal(np.stack(packed), numbers.astype("<f4"))


async def test_form_usage_and_span(engine: EncoderEngine, spans: InMemorySpanExporter) -> None:
    before = engine.stats().prompt_tokens
    reply = await embed(engine, ["hello world", "hi"])
    answer = json.loads(reply.body)
    assert (answer["object"], answer["model"]) == ("list", "encoder")
    assert [(item["object"], item["index"]) for item in answer["data"]] == [("embedding", 0), ("embedding", 1)]
    # Two words and one, each text between its two special tokens.
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert reply.usage.prompt_tokens == engine.stats().prompt_tokens - before == 7
    span = spans.get_finished_spans()[-1]
    assert (span.name, span.kind.name) == ("embeddings encoder", "INTERNAL")
    assert span.attributes["gen_ai.usage.input_tokens"] == 7
    assert span.attributes["gen_ai.embeddings.dimension.count"] == 384


async def test_requests_at_once_get_their_own_vectors(engine: EncoderEngine) -> None:
    texts = [f"text number {number} about {'cats' if number % 2 else 'ships'}" for number in range(40)]
    together = await asyncio.gather(*(embed(engine, [text, text]) for text in texts))
    alone = vectors(await embed(engine, texts))
    for index, reply in enumerate(together):
        assert np.abs(vectors(reply) - alone[index]).max() < 1e-5
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)


@pytest.mark.parametrize(
    ("given", "body", "param"),
    [
        ("x", {"dimensions": 128}, "dimensions"),
        ([1, 2, 3], {}, "input"),
        ([[1, 2]], {}, "input"),
        ([], {}, "input"),
        (None, {}, "input"),
    ],
)
async def test_what_it_does_not_do_is_a_400(engine: EncoderEngine, given: Any, body: Any, param: str) -> None:
    assert error(await embed(engine, given, **body))["param"] == param


@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.COMPLETION])
async def test_it_does_not_chat(engine: EncoderEngine, endpoint: Endpoint) -> None:
    assert "/v1/embeddings" in error(await embed(engine, "x", endpoint))["message"]


async def test_a_text_that_is_too_long_is_refused_and_never_cut(engine: EncoderEngine) -> None:
    refused = error(await embed(engine, ["short", "canaryword " * 400]))
    assert "input[1]" in refused["message"]
    assert "256" in refused["message"]
    assert "canary" not in refused["message"]


async def test_cancelled_requests_leave_the_queue(engine: EncoderEngine) -> None:
    tasks = [asyncio.create_task(embed(engine, ["word " * 200] * 32)) for _ in range(8)]
    await until(lambda: engine.stats().running > 0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    async with asyncio.timeout(2.0):
        await engine.heartbeat()
        vectors(await embed(engine, "still there"))
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)


async def test_a_folder_that_holds_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(EngineStartError, match="'broken' could not start"):
        await EncoderEngine("broken", tmp_path, MODEL).start()


async def test_a_closed_engine_is_dead(path: Path) -> None:
    closed = EncoderEngine("encoder", path, MODEL)
    await closed.start()
    await closed.close()
    await closed.close()
    with pytest.raises(EngineDeadError):
        await closed.heartbeat()


async def test_memory_of_the_process_that_runs_it(path: Path) -> None:
    program = f"""
        import asyncio, os
        from pathlib import Path
        from cluster.config.base import Kind
        from cluster.config.model import ModelConfig
        from deployments.engines.encoder import EncoderEngine
        from deployments.engines.protocol import Endpoint, EngineRequest
        from deployments.processes import proportional_memory

        async def main():
            model = ModelConfig(kind=Kind.ENCODER, roles=("embedding",), source="embedded:encoder")
            engine = EncoderEngine("encoder", Path({str(path)!r}), model)
            await engine.start()
            for _ in range(3):
                body = {{"input": ["word " * 250] * 64}}
                reply = await engine.run(EngineRequest("r", Endpoint.EMBEDDING, body), lambda _: None)
                assert reply.status == 200
            print(proportional_memory([os.getpid()]))

        asyncio.run(main())
    """
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= MEMORY_LIMIT
