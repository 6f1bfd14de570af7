"""The sentence encoder behind `/v1/embeddings`: a torch model in this process, on one thread, without vLLM."""

from __future__ import annotations

import asyncio
import base64
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from opentelemetry.trace import SpanKind

from cluster.api.errors import ApiError, bad_request
from cluster.api.json_body import JsonObject
from cluster.config.model import ModelConfig
from cluster.telemetry import names
from deployments.engines.encoder_batching import MicroBatcher, QueueFullError, Vectors
from deployments.engines.expert_routing import NoExpertLoad
from deployments.engines.kv_precision import FixedKvPrecision
from deployments.engines.protocol import (
    Emit,
    Endpoint,
    EngineDeadError,
    EngineReply,
    EngineRequest,
    EngineStartError,
    EngineStats,
    TokenUsage,
)
from deployments.engines.spans import EngineTracer, note_reply

if TYPE_CHECKING:
    from deployments.models.encoder import SentenceEncoder

MAX_QUEUED_TEXTS: Final = 4096
"""Texts that wait for the thread, at most: some seconds of work."""

OFF_LOOP_VECTORS: Final = 16
"""A response with more vectors than this is written on a thread; 384 numbers take about 0.1 ms."""


class EncoderEngine(FixedKvPrecision, NoExpertLoad):
    """Serves embeddings of one encoder, `max_num_seqs` texts at once."""

    kind = "encoder"

    def __init__(self, name: str, path: Path, model: ModelConfig) -> None:
        self._name = name
        self._path = path
        self._model = model
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")
        self._encoder: SentenceEncoder | None = None
        self._batches: MicroBatcher | None = None
        self._stats = EngineStats()
        self._tracer = EngineTracer(SpanKind.INTERNAL, name, {names.ENGINE: self.kind})

    async def start(self) -> None:
        """Load the model. Raises `EngineStartError` naming the model and the cause."""
        # Read when torch is imported, which is when the model is loaded.
        os.environ["OMP_NUM_THREADS"] = str(self._model.replicas.omp_threads)
        try:
            encoder = await asyncio.get_running_loop().run_in_executor(self._pool, self._load)
        except Exception as error:
            raise EngineStartError(
                f"model {self._name!r} could not start: {error}; check its source with `pointsman models`"
            ) from error

        def encode(texts: list[str]) -> tuple[Vectors, list[int]]:
            made = encoder.encode(texts)
            return made.vectors, [read + dropped for read, dropped in zip(made.tokens, made.dropped, strict=True)]

        self._encoder = encoder
        self._batches = MicroBatcher(encode, self._model.engine.max_num_seqs, MAX_QUEUED_TEXTS, self._pool)

    def _load(self) -> SentenceEncoder:
        from deployments.models.encoder import SentenceEncoder

        encoder = SentenceEncoder(self._path)
        # The first run sets up what all others use.
        encoder.encode(["warm up"])
        return encoder

    async def run(self, request: EngineRequest, emit: Emit) -> EngineReply:  # noqa: ARG002 - there is nothing to stream
        """Serve one embeddings request; see `Engine.run`."""
        error = None
        with self._tracer.request(request) as span:
            try:
                reply = await self._embed(request)
            except ApiError as refused:
                error = refused.code
                reply = EngineReply(status=refused.status, body=refused.body())
            if self._encoder is not None:
                span.set_attribute(names.EMBEDDING_DIMENSIONS, self._encoder.dimension)
            note_reply(span, reply, error)
        return reply

    async def _embed(self, request: EngineRequest) -> EngineReply:
        encoder, batches = self._started()
        if request.endpoint is not Endpoint.EMBEDDING:
            raise bad_request(
                "model",
                f"The model {self._name} makes embeddings and does not chat; "
                "send this to /v1/embeddings, or name a chat model of /v1/models.",
                "unsupported_endpoint",
            )
        texts = _texts(request.body)
        dimensions = request.body.get("dimensions")
        if dimensions is not None and dimensions != encoder.dimension:
            raise bad_request(
                "dimensions", f"The vectors of {self._name} have {encoder.dimension} dimensions; leave the field out."
            )
        try:
            vectors, counts = await batches.submit(texts)
        except QueueFullError:
            raise ApiError(
                429,
                "queue_full",
                f"{MAX_QUEUED_TEXTS} texts are waiting for the encoder, its limit; try again in a moment.",
                type="rate_limit_error",
                headers={"retry-after": "1"},
            ) from None
        self._refuse_cut(encoder, counts)
        tokens = sum(counts)
        self._stats = replace(self._stats, prompt_tokens=self._stats.prompt_tokens + tokens)
        as_base64 = request.body.get("encoding_format") == "base64"
        if len(texts) > OFF_LOOP_VECTORS:
            body = await asyncio.to_thread(_response, self._name, vectors, tokens, as_base64)
        else:
            body = _response(self._name, vectors, tokens, as_base64)
        return EngineReply(status=200, body=body, usage=TokenUsage(prompt_tokens=tokens))

    def _refuse_cut(self, encoder: SentenceEncoder, counts: list[int]) -> None:
        """A vector of a text's beginning is not its vector, so a text that is too long is refused."""
        for index, tokens in enumerate(counts):
            if tokens > encoder.max_tokens:
                raise bad_request(
                    "input",
                    f"input[{index}] has {tokens} tokens; {self._name} takes {encoder.max_tokens}. Split it.",
                    "context_length_exceeded",
                )

    def stats(self) -> EngineStats:
        """Requests being worked on and waiting, and tokens read."""
        if self._batches is None:
            return self._stats
        return replace(self._stats, running=self._batches.running, waiting=self._batches.waiting)

    async def heartbeat(self) -> None:
        """Returns when the thread has finished the batch that it is at."""
        self._started()
        await asyncio.get_running_loop().run_in_executor(self._pool, int)

    def pids(self) -> tuple[int, ...]:
        """None: it runs in this process."""
        return ()

    async def close(self) -> None:
        """Fail what waits, and free the model."""
        batches, self._batches = self._batches, None
        self._encoder = None
        if batches is not None:
            await batches.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _started(self) -> tuple[SentenceEncoder, MicroBatcher]:
        if self._encoder is None or self._batches is None:
            raise EngineDeadError(f"the encoder of model {self._name!r} is not running")
        return self._encoder, self._batches


def _texts(body: JsonObject) -> list[str]:
    given = body.get("input")
    items = [given] if isinstance(given, str) else given
    if not isinstance(items, list) or not items:
        raise bad_request("input", "`input` is a text or a list of texts, and at least one.")
    texts = [item for item in items if isinstance(item, str)]
    if len(texts) != len(items):
        raise bad_request("input", "`input` holds something that is no text; this encoder does not take token ids.")
    return texts


def _response(model: str, vectors: Vectors, tokens: int, as_base64: bool) -> bytes:
    if as_base64:
        # Little-endian float32, as OpenAI's clients unpack it.
        values: list[object] = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
    else:
        values = vectors.tolist()
    return msgspec.json.encode(
        {
            "object": "list",
            "data": [{"object": "embedding", "index": index, "embedding": value} for index, value in enumerate(values)],
            "model": model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )
