"""`/v1/embeddings`: from a parsed body to a request within bounds."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.api.chat import MAX_MODEL_BYTES
from cluster.api.fields import Fields, required
from cluster.api.inputs import read_inputs
from cluster.api.json_body import JsonObject
from cluster.api.known_fields import EMBEDDING, REFUSED
from cluster.api.prompt_size import estimate_tokens
from cluster.config.ingress import LimitsConfig


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """An embeddings request within bounds. Texts stay out of its repr."""

    model: str = field(repr=False)
    """What the caller wrote: a name or a role, not yet looked up."""
    inputs: int
    """Inputs (a count)."""
    prompt_bytes: int
    """Bytes of the longest input, UTF-8."""
    prompt_tokens_estimate: int
    """About that many tokens have all inputs together."""
    are_tokens: bool
    """Whether the inputs are token ids."""
    base64: bool
    """Whether vectors are returned as base64 of little-endian float32, not as numbers."""
    dimensions: int | None
    """Length of the vectors asked for; None: the encoder's own."""
    body: JsonObject = field(repr=False)
    """The cleaned body, without `model`, to hand to an engine. Not to be changed in place."""


def parse_embedding(body: JsonObject, limits: LimitsConfig) -> EmbeddingRequest:
    """The embeddings request in `body`. Raises `ApiError` 400 naming field and limit, never the caller's text."""
    fields = Fields(body)
    fields.allow(EMBEDDING, REFUSED)
    model = required(fields.string("model", MAX_MODEL_BYTES, empty=False), "model")
    inputs = read_inputs(fields, "input", limits)
    encoding = fields.choice("encoding_format", ("float", "base64")) or "float"
    dimensions = fields.integer("dimensions", 1, 65_536)
    fields.string("user", 512)
    engine_body: JsonObject = {"input": inputs.value, "encoding_format": encoding}
    if dimensions is not None:
        engine_body["dimensions"] = dimensions
    return EmbeddingRequest(
        model=model,
        inputs=inputs.count,
        prompt_bytes=inputs.longest_bytes,
        prompt_tokens_estimate=estimate_tokens(inputs.text_bytes),
        are_tokens=inputs.are_tokens,
        base64=encoding == "base64",
        dimensions=dimensions,
        body=engine_body,
    )
