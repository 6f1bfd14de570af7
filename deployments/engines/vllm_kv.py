"""KV precision and KV accounting of a vLLM engine, from the replica's side."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cluster.precision.measures import OWN
from deployments.engines import vllm_internals
from deployments.engines.kv_precision import KvPrecisionError, KvSwitch, KvUse
from deployments.engines.protocol import EngineDeadError
from deployments.engines.vllm_asking import ask
from deployments.engines.vllm_kv_core import LOWER

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM


@dataclass(slots=True)
class Watched:
    """Requests of vLLM's layer for one of ours, and what became of them."""

    request_ids: list[str] = field(default_factory=list)
    preempted: bool = False
    """Whether any was."""
    log_experts: int = 0
    """Tokens per sequence whose experts are to be kept; 0: none."""
    experts: list[Any] = field(default_factory=list)
    """What came with the last outputs: counts (1, layers, experts), or experts (tokens, layers, top-k) per sequence."""


watched: ContextVar[Watched | None] = ContextVar("watched", default=None)
"""Takes in what vLLM's layer asks the engine for; that layer knows of no such thing, so it is told this way."""


async def watch(
    outputs: AsyncGenerator[RequestOutput, None], request_id: str, notes: Watched
) -> AsyncGenerator[RequestOutput, None]:
    """The same outputs; notes if the request was ever preempted, and which experts it used."""
    notes.request_ids.append(request_id)
    try:
        async for output in outputs:
            if output.metrics is not None and output.metrics.num_preemptions:
                notes.preempted = True
            notes.experts += [one.routed_experts for one in output.outputs if one.routed_experts is not None]
            yield output
    finally:
        # An abandoned stream ends here first: the engine must not go on for nobody.
        await outputs.aclose()


class VllmKv:
    """What a replica knows and can do of one engine's KV cache."""

    def __init__(self, engine: AsyncLLM) -> None:
        cache = engine.vllm_config.cache_config
        self._engine = engine
        own = str(engine.model_config.dtype).removeprefix("torch.")
        self.weights: str = weights_format(engine.model_config)
        """Number format of the weights, for example `int8`."""
        self._names = {OWN: own, **{lower: lower for lower in LOWER}}
        self.precision: str = self._names.get(cache.cache_dtype, cache.cache_dtype)
        """Number format in force, for example `bfloat16`."""
        self.blocks: int = cache.num_gpu_blocks or 0
        self.block_tokens: int = cache.block_size
        self.blockers: tuple[str, ...] = ()
        self.precisions: tuple[str, ...] = ()

    async def detect(self) -> None:
        """Find out whether the precision can change while the engine runs."""
        cache = self._engine.vllm_config.cache_config
        found = await ask(self._engine, vllm_internals.BLOCKERS_METHOD)
        if cache.cache_dtype != OWN:
            found = [f"a KV precision that is set to {cache.cache_dtype}", *found]
        self.blockers = tuple(str(reason) for reason in found)
        self.precisions = () if self.blockers else (OWN, *LOWER)

    async def switch(self, precision: str) -> KvSwitch:
        """Change the precision. Raises `KvPrecisionError`; the engine's end comes as vLLM's own error."""
        if precision not in self.precisions:
            why = "; ".join(self.blockers) or f"it can be {' or '.join(self.precisions)}"
            raise KvPrecisionError(f"the KV precision cannot change to {precision}: {why}")
        before, after = self.precision, self._names[precision]
        if before == after:
            return KvSwitch(before, after, 0.0, 0, 0, self.blocks, self.blocks)
        try:
            pause_s, preempted, tokens, was, now = await ask(self._engine, vllm_internals.PRECISION_METHOD, precision)
        except Exception as error:
            if self._engine.errored:
                raise EngineDeadError("the engine ended in the middle of a change of its KV precision") from error
            raise KvPrecisionError(f"the KV precision was not changed: {error}") from error
        self.precision, self.blocks = after, int(now)
        return KvSwitch(before, after, float(pause_s), int(preempted), int(tokens), int(was), int(now))

    async def used(self, notes: Watched) -> KvUse:
        """What a request met. Asks the engine core only if it was preempted."""
        if not notes.preempted:
            return KvUse(self.precision)
        preemptions = forced = recomputed = 0
        try:
            for request_id in notes.request_ids:
                lost = await ask(self._engine, vllm_internals.LOST_METHOD, request_id)
                preemptions, forced, recomputed = preemptions + lost[0], forced + lost[1], recomputed + lost[2]
        except Exception:
            if not self._engine.errored:
                raise
            # The engine has ended since. The answer is whole; what it cost is lost.
        return KvUse(self.precision, preemptions, forced, recomputed)


def weights_format(model_config: Any) -> str:
    """Number format of a model's weights: that of its checkpoint's quantization, else that it computes in."""
    quantized = getattr(model_config.hf_config, "quantization_config", None)
    if isinstance(quantized, dict):
        for group in (quantized.get("config_groups") or {}).values():
            weights = group.get("weights") or {}
            if weights.get("num_bits"):
                return f"{weights.get('type', 'int')}{weights['num_bits']}"
        bits = quantized.get("bits") or quantized.get("weight_bits")
        if bits:
            return f"int{bits}"
    return model_config.quantization or str(model_config.dtype).removeprefix("torch.")
