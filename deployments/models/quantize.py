"""int8 weights and activations (W8A8) in the compressed-tensors format."""

from __future__ import annotations

import torch
from torch import Tensor

_LEVELS = 127


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight (out, in) to int8 with one scale per output channel.

    Returns int8 (out, in) and float32 (out, 1), whose product approximates the weight.
    """
    scale = weight.float().abs().amax(dim=1, keepdim=True).clamp_min(1e-8) / _LEVELS
    return (weight.float() / scale).round().clamp(-_LEVELS, _LEVELS).to(torch.int8), scale


def quantize_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replace every projection and the output head of a checkpoint by its int8 form, `weight` and `weight_scale`."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight") or name == "lm_head.weight":
            out[name], out[f"{name}_scale"] = quantize(tensor)
        else:
            out[name] = tensor
    return out


def quantization_config() -> dict[str, object]:
    """The `quantization_config` of such a checkpoint: activations are quantised per token as they come."""
    common = {"num_bits": 8, "type": "int", "symmetric": True}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": [],
        "config_groups": {
            "group_0": {
                "targets": ["Linear", "re:.*lm_head"],
                "weights": {**common, "strategy": "channel", "dynamic": False},
                "input_activations": {**common, "strategy": "token", "dynamic": True},
            }
        },
    }
