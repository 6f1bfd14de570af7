"""How a model's engine is set up."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from cluster.config.base import Section


class EngineType(StrEnum):
    """Which implementation of the engine protocol runs a model."""

    VLLM = "vllm"
    SIMULATED = "simulated"
    ENCODER = "encoder"
    EXTERNAL = "external"


class SimulatedExperts(Section):
    """The experts that a simulated sparse model pretends to have. Their routes are made up, and the same every time."""

    layers: int = Field(4, ge=1, le=512)
    """Layers with experts (a count)."""
    experts: int = Field(8, ge=2, le=4096)
    """Experts in each layer (a count)."""
    top_k: int = Field(2, ge=1, le=64)
    """Experts that each token goes to, in each layer (a count); not more than there are."""
    concentration: float = Field(1.0, ge=0, le=10)
    """How unevenly one kind of traffic spreads over the experts of a layer, a number: the exponent of Zipf's law; 0: evenly."""


class SimulatedConfig(Section):
    """The simulated engine: what it costs to prefill and decode, and how much KV it pretends to have.

    The defaults are fitted to measured runs of SmolLM2-135M in bfloat16 on vLLM with one core of two; docs/loadtests.md
    shows the runs beside what these numbers make of them.
    """

    seed: int = Field(0, ge=0, le=2**63 - 1)
    """Seed of the generated text (a number, no unit)."""
    prefill_tokens_per_s: float = Field(1500.0, gt=0, le=1e9)
    """Prompt tokens processed per second."""
    decode_step_base_s: float = Field(0.019, ge=0, le=60)
    """Seconds that a decode step takes before the cost of its sequences."""
    decode_step_per_seq_s: float = Field(0.001, ge=0, le=60)
    """Seconds that each running sequence adds to a decode step."""
    kv_blocks: int = Field(181, ge=1, le=10_000_000)
    """KV blocks in the pool; by default those that 512 MiB hold of that model."""
    kv_block_tokens: int = Field(128, ge=1, le=65_536)
    """Tokens that a KV block holds."""
    confidence: float = Field(0.9, gt=0, le=1)
    """Mean probability of the tokens that it generates, 0 to 1; each token's lies around it, by the seed."""
    experts: SimulatedExperts | None = None
    """Experts of a sparse model; null: it tells of none."""
    clock: Literal["real", "virtual"] = "real"
    """`real` sleeps, `virtual` advances a simulated clock without waiting."""


class EngineConfig(Section):
    """One engine. Settings that an engine type does not have are refused for it, not ignored."""

    type: EngineType = EngineType.VLLM
    """Which engine runs the model; left out, it follows from the model's kind."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number format of weights and activations; `auto`: the checkpoint's, but float32 on CPUs slow in bfloat16."""
    max_model_len: int | None = Field(None, ge=16, le=16_777_216)
    """Tokens of prompt and completion together that a sequence may hold; null: the model's own limit."""
    max_num_seqs: int = Field(32, ge=1, le=65_536)
    """Sequences at once in the running batch."""
    max_num_batched_tokens: int | None = Field(None, ge=16, le=16_777_216)
    """Tokens that one engine step may process; null: the engine's own choice, on a CPU 128."""
    kv_cache_bytes: int | None = Field(None, ge=1_048_576, le=2**44)
    """Bytes of the KV cache pool; null: the engine's own choice (most of a GPU's free memory)."""
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    """Number format of the KV cache; `auto` is that of the model."""
    kv_second_engine: bool = False
    """True has an engine that cannot change its KV precision while it runs start a second one beside the first, and drain;
    both must fit into memory (yes or no, no unit)."""
    kv_window_tokens: int | None = Field(None, ge=16, le=16_777_216)
    """Tokens of KV that a sequence may hold; older chat turns leave by a sliding window. Null: no window."""
    return_routed_experts: bool = False
    """True has vLLM itself tell the experts of each token on a GPU; it needs a sparse model, its model runner V2 and prefix caching (yes or no, no unit)."""
    enforce_eager: bool = False
    """True starts without compiling the model: quick to start, slower to run (yes or no, no unit)."""
    tensor_parallel_size: int = Field(1, ge=1, le=1024)
    """GPUs over which each layer is split."""
    expert_parallel: bool = False
    """True spreads the experts of a sparse model over the GPUs instead of splitting each (yes or no, no unit)."""
    quantization: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    """Name of the engine's quantization method, for example `fp8`; null: what the checkpoint says."""
    tool_parser: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    """Name of the parser that reads tool calls out of the text, for example `hermes`; null: `auto` tools refused."""
    reasoning_parser: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    """Name of the parser that separates reasoning from the answer; null: none."""
    chat_template: str | None = Field(None, min_length=1, max_length=4096)
    """Path of a chat template file; null: the one that comes with the model."""
    seed: int = Field(0, ge=0, le=2**63 - 1)
    """Seed of the engine's sampler (a number, no unit)."""
    prefix_caching: bool = True
    """True shares KV blocks between requests that start with the same tokens (yes or no, no unit)."""
    simulated: SimulatedConfig | None = None
    """Settings of the simulated engine; only for type `simulated`, null: its defaults."""
