"""The part of a live change of KV precision that happens in vLLM's worker, added to its class as a worker extension."""

from __future__ import annotations

from typing import Any, Final

TESTED_BACKENDS: Final = frozenset({"CPU_ATTN"})
"""Attention backends that a change was tested with."""


class KvPrecisionWorker:
    """Methods of a worker, called by `collective_rpc`. The attributes that they use are those of vLLM's own worker."""

    vllm_config: Any
    cache_config: Any
    model_runner: Any

    def pointsman_kv_blockers(self, lower: str) -> list[str]:
        """What about this worker's model stands in the way of a change to and from `lower`; empty: nothing does."""
        found = []
        layers = _attention_layers(self.vllm_config)
        if not layers:
            return ["the model has no attention layers with a KV cache"]
        backends = sorted({layer.attn_backend.get_name() for layer in layers})
        found += [f"attention backend {name}" for name in backends if name not in TESTED_BACKENDS]
        if any(getattr(layer, "query_quant", None) is not None for layer in layers):
            found.append("queries that are quantized")
        if not found:
            found += _unsupported(self.vllm_config, layers, lower)
        return found

    def pointsman_set_kv_dtype(self, dtype: str) -> None:
        """Free the KV cache and have the next one made in `dtype`, a name of vLLM's. No request may hold blocks."""
        import torch
        from vllm.utils.torch_utils import is_quantized_kv_cache, kv_cache_dtype_str_to_dtype

        runner = self.model_runner
        stored = kv_cache_dtype_str_to_dtype(dtype, self.vllm_config.model_config)
        for config in (self.vllm_config.cache_config, self.cache_config, runner.cache_config):
            config.cache_dtype = dtype
        runner.kv_cache_dtype = stored
        for layer in _attention_layers(self.vllm_config):
            layer.kv_cache_dtype = layer.impl.kv_cache_dtype = dtype
            layer.kv_cache_torch_dtype = stored
            layer.impl.is_fp8_kv_cache = is_quantized_kv_cache(dtype)
            layer.kv_cache = torch.tensor([])
        runner.kv_caches.clear()
        runner.attn_groups.clear()


def _attention_layers(vllm_config: Any) -> list[Any]:
    layers = vllm_config.compilation_config.static_forward_context.values()
    return [layer for layer in layers if hasattr(layer, "kv_cache_dtype")]


def _unsupported(vllm_config: Any, layers: list[Any], lower: str) -> list[str]:
    """What the attention kernels of this processor cannot do, in vLLM's own words."""
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    cache, found = vllm_config.cache_config, set()
    for size in {layer.head_size for layer in layers}:
        try:
            _get_attn_isa(vllm_config.model_config.dtype, cache.block_size, size, lower)
        except RuntimeError as error:
            found.add(str(error).rstrip("."))
    return sorted(found)
