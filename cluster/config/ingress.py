"""Where the cluster listens, what it takes from a caller, and who may call."""

from __future__ import annotations

from pydantic import Field

from cluster.config.base import Section


class LimitsConfig(Section):
    """Bounds on what a user can send. Past one on the request itself the answer is a 4xx that says which, and the limit.

    What an ingress holds at once is nobody's mistake: past `max_concurrent_requests` and `body_bytes_at_once` the answer is
    503, and past `max_buffered_bytes_per_stream` a stream ends with an error and an answer in one piece is a 500.
    """

    body_bytes: int = Field(1_048_576, ge=1024, le=67_108_864)
    """Bytes of a request body."""
    body_bytes_at_once: int = Field(8_388_608, ge=1024, le=2**36)
    """Bytes of large bodies (over 64 KiB) that one ingress process holds at once; further ones wait unread."""
    header_bytes: int = Field(16_384, ge=1024, le=1_048_576)
    """Bytes of all request headers together."""
    header_count: int = Field(100, ge=8, le=1000)
    """Headers of a request (a count)."""
    json_depth: int = Field(32, ge=4, le=128)
    """Levels of nested arrays and objects in a body (a count)."""
    json_nodes: int = Field(50_000, ge=100, le=10_000_000)
    """Values in a body (a count)."""
    max_concurrent_requests: int = Field(512, ge=1, le=100_000)
    """Requests in flight in one ingress process."""
    slow_client_timeout_s: float = Field(30.0, gt=0, le=3600)
    """Seconds that a client may take to send its request, or to take the next bytes of its response."""
    max_buffered_bytes_per_stream: int = Field(262_144, ge=4096, le=67_108_864)
    """Bytes of a response that wait for a slow reader; past them the stream is ended."""
    prompt_bytes: int = Field(524_288, ge=1, le=67_108_864)
    """Bytes of all prompt text in a request (UTF-8), counted before anything is tokenized."""
    max_n: int = Field(8, ge=1, le=128)
    """Completions per prompt that `n` and `best_of` may ask for (a count)."""
    max_stop: int = Field(4, ge=0, le=64)
    """Stop sequences of a request (a count)."""
    max_stop_bytes: int = Field(256, ge=1, le=65_536)
    """Bytes of one stop sequence."""
    max_logit_bias: int = Field(300, ge=0, le=10_000)
    """Entries of `logit_bias` (a count)."""
    max_top_logprobs: int = Field(20, ge=0, le=100)
    """Alternatives per token that `top_logprobs` may ask for (a count)."""
    max_tools: int = Field(64, ge=0, le=1024)
    """Tools of a request (a count)."""
    max_schema_bytes: int = Field(65_536, ge=64, le=1_048_576)
    """Bytes of one JSON schema, of `response_format` or of a tool."""
    max_messages: int = Field(1024, ge=1, le=100_000)
    """Messages of a chat (a count)."""
    max_embedding_inputs: int = Field(256, ge=1, le=10_000)
    """Inputs of one embeddings request, and prompts of one completions request (a count)."""


class IngressConfig(Section):
    """The process that reads the socket."""

    host: str = Field("127.0.0.1", min_length=1, max_length=253, pattern=r"^[A-Za-z0-9.:_-]+$")
    """Address to listen on, an IP address or a host name."""
    port: int = Field(8000, ge=1, le=65_535)
    """TCP port to listen on (a number)."""
    replicas: int = Field(1, ge=1, le=256)
    """Ingress processes (a count); each applies the limits of keys to the requests that it takes itself."""
    lame_duck_s: float = Field(0.0, ge=0, le=600)
    """Seconds that an ingress which is to stop still takes requests, while `/readyz` says that it stops: longer than what
    sends requests to it (a Service of Kubernetes, a load balancer) takes to look there and act upon it. 0: it stops at once."""
    limits: LimitsConfig = LimitsConfig()
    """Bounds on requests."""


class KeysConfig(Section):
    """API keys."""

    path: str | None = Field(None, max_length=4096, pattern=r"^(/|~/).+$")
    """Absolute path of the file of hashed keys (or below `~/`); null: `keys.jsonl` in the state directory."""
    required: bool | None = None
    """True asks every caller for a key, false none; null: asked for as soon as the ingress listens beyond loopback."""
