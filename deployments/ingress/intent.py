"""Asks the cluster's encoder what a request is for; whatever keeps it from answering in time, the words decide."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import secrets
import time
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import msgspec
import numpy as np

from cluster.api.embedding import EmbeddingRequest
from cluster.api.json_body import JsonObject
from cluster.api.requests import ApiRequest
from cluster.config.base import AUTO, Kind
from cluster.config.cluster import ClusterConfig
from cluster.routing.intent import lexical_intent
from cluster.routing.intent_prototypes import LOOKED_AT, PrototypeError, Prototypes, Vector, read_prototypes
from cluster.routing.reading import Reading
from deployments.channel.stream import ReplicaLostError, SlowReaderError
from deployments.engines.protocol import Endpoint, EngineRequest
from deployments.ingress.dispatch import ModelClient, NoReplicaError, QueueFullError

_log = logging.getLogger(__name__)

_MAX_REPLY_BYTES: Final = 262_144
_NOT_READY: Final = (NoReplicaError, QueueFullError, ReplicaLostError, SlowReaderError)


class _Embedding(msgspec.Struct):
    embedding: str
    """Little-endian float32, as base64."""


class _Embeddings(msgspec.Struct):
    """What is read of an embeddings answer."""

    data: list[_Embedding]


class IntentReader:
    """Tells the intent of the requests of one ingress under one config."""

    def __init__(self, config: ClusterConfig, clients: Mapping[str, ModelClient]) -> None:
        self._config = config.routing.intent
        self._clients = clients
        self._salt = secrets.token_bytes(16)
        self._known: OrderedDict[bytes, str] = OrderedDict()
        self._in_flight = 0
        self._misses = 0
        self._paused_until = 0.0
        self._encoder, self._prototypes, self._without = _chosen(config)

    async def read(self, request: ApiRequest) -> Reading[str] | None:
        """The intent, with who told it and why not the encoder; None for embeddings, which have none.

        The encoder is asked where it can matter, for `auto`; a model or a role that was named stays named.
        """
        if isinstance(request, EmbeddingRequest):
            return None
        started = time.perf_counter()
        lexical = lexical_intent(request.text)
        if request.model != AUTO or not self._config.encode:
            return lexical
        text = request.text[:LOOKED_AT]
        if self._encoder is None or self._prototypes is None or not text.strip():
            return replace(lexical, note=self._without)
        found = await self._encoded(text, lexical, self._encoder, self._prototypes)
        return replace(found, cost_s=time.perf_counter() - started)

    async def _encoded(self, text: str, lexical: Reading[str], encoder: str, prototypes: Prototypes) -> Reading[str]:
        # A salted hash: what is remembered tells nobody what was asked.
        name = hashlib.blake2b(text.encode(errors="replace"), key=self._salt, digest_size=16).digest()
        known = self._known.get(name)
        if known is not None:
            self._known.move_to_end(name)
            return Reading(known, "encoder")
        now = asyncio.get_running_loop().time()
        if now < self._paused_until:
            return replace(lexical, note="encoder too slow of late")
        if self._in_flight >= self._config.max_in_flight:
            return replace(lexical, note="encoder busy")
        self._in_flight += 1
        try:
            async with asyncio.timeout(self._config.deadline_s):
                vector = await self._vector(encoder, text)
            found = prototypes.nearest(vector, lexical)
        except Exception as error:  # noqa: BLE001 - no request fails because its intent is not known
            return replace(lexical, note=self._why(error, now))
        finally:
            self._in_flight -= 1
        self._misses = 0
        if found.value is not None:
            self._remember(name, found.value)
        return found

    def _why(self, error: Exception, now: float) -> str:
        """Why there is no vector; several that were late in a row end the asking for a while."""
        if isinstance(error, PrototypeError):
            return str(error)
        if isinstance(error, _NOT_READY):
            return "encoder not ready"
        if not isinstance(error, TimeoutError):
            _log.error("the encoder cannot be asked: %s", type(error).__name__)
            return "encoder failed"
        self._misses += 1
        if self._misses >= self._config.misses_until_pause:
            self._misses, self._paused_until = 0, now + self._config.pause_s
        return f"encoder took longer than {self._config.deadline_s * 1000:g} ms"

    async def _vector(self, encoder: str, text: str) -> Vector:
        body: JsonObject = {"input": text, "encoding_format": "base64", "model": encoder}
        request = EngineRequest(f"intent-{uuid.uuid4().hex}", Endpoint.EMBEDDING, body)
        answer = self._clients[encoder].answer(request, _MAX_REPLY_BYTES)
        try:
            while await answer.next() is not None:
                pass
            reply = answer.reply
        finally:
            # Also when the deadline or the client's leaving cancels this: the encoder stops working on it.
            answer.close()
        if reply is None or reply.status != 200:
            raise NoReplicaError(encoder)
        try:
            vector = msgspec.json.decode(reply.body, type=_Embeddings).data[0].embedding
            return np.frombuffer(base64.b64decode(vector), dtype="<f4")
        except (msgspec.MsgspecError, LookupError, ValueError):
            raise PrototypeError("the encoder's answer cannot be read") from None

    def _remember(self, name: bytes, intent: str) -> None:
        if not self._config.cache_entries:
            return
        self._known[name] = intent
        if len(self._known) > self._config.cache_entries:
            self._known.popitem(last=False)


def _chosen(config: ClusterConfig) -> tuple[str | None, Prototypes | None, str]:
    """The encoder to ask and its prototypes; without them, why there are none, empty if that was decided."""
    wanted = config.routing.intent
    encoders = [name for name, model in config.models.items() if model.kind is Kind.ENCODER]
    encoder = wanted.encoder or next(iter(encoders), None)
    if not wanted.encode or encoder is None:
        return None, None, ""
    try:
        prototypes = read_prototypes()
    except PrototypeError as error:
        _log.warning("the intent is told by words alone: %s", error)
        return None, None, "no prototypes"
    source = config.models[encoder].source
    if source != prototypes.encoder:
        _log.warning(
            "the intent is told by words alone: the prototypes are those of another encoder", extra={"model": encoder}
        )
        return None, None, f"prototypes are of {prototypes.encoder}"
    return encoder, prototypes, ""
