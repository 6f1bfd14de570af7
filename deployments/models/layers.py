"""A Llama model as plain tensors, run one layer at a time.

Fitting a model layer by layer needs the inside of each layer: what the heads put out before their projection and
what the neurons of the FFN put out before theirs. What goes in and out of a product is rounded to bfloat16, as it is
where the model is served; the residual stream is kept in float32. Hidden size is called H, neurons of an FFN F.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from deployments.processor import computes_bfloat16

_ROWS_AT_ONCE = 8


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama model."""

    hidden: int
    neurons: int
    layers: int
    heads: int
    kv_heads: int
    norm_epsilon: float
    rope_theta: float

    @property
    def head(self) -> int:
        """Size of one head."""
        return self.hidden // self.heads


@dataclass
class Layer:
    """Weights of one layer, bfloat16, projections in (out, in) order."""

    input_norm: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    post_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


@dataclass
class Stack:
    """A Llama model whose output projection is its embedding."""

    shape: Shape
    embedding: Tensor
    layers: list[Layer]
    norm: Tensor


LAYER_KEYS = {
    "input_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "post_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""Names of a layer's weights in a checkpoint, without `model.layers.N.` and `.weight`."""


def load_stack(folder: Path) -> Stack:
    """Read a Llama checkpoint of one file with tied embeddings. Raises OSError or KeyError."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = Shape(
        hidden=config["hidden_size"],
        neurons=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        norm_epsilon=config["rms_norm_eps"],
        rope_theta=config["rope_parameters"]["rope_theta"],
    )
    weights = load_file(folder / "model.safetensors")
    layers = [
        Layer(**{name: weights[f"model.layers.{number}.{key}.weight"] for name, key in LAYER_KEYS.items()})
        for number in range(shape.layers)
    ]
    return Stack(shape, weights["model.embed_tokens.weight"], layers, weights["model.norm.weight"])


def embed(stack: Stack, tokens: Tensor) -> Tensor:
    """Residual stream in front of the first layer: float32 of shape (rows, length, H)."""
    return stack.embedding[tokens].float()


def rms_norm(residual: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Root-mean-square norm, bfloat16, same shape."""
    scale = torch.rsqrt(residual.square().mean(-1, keepdim=True) + epsilon)
    return (residual * scale * weight.float()).bfloat16()


def product(x: Tensor, weight: Tensor) -> Tensor:
    """`x` (..., i) times `weight` (o, i), both bfloat16: bfloat16 (..., o), summed in float32."""
    if computes_bfloat16():
        return x @ weight.T
    return (x.float() @ weight.float().T).bfloat16()


def gated_neurons(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """Outputs of neurons with weights (M, H) each for inputs (n, H), all bfloat16: bfloat16 (n, M)."""
    return functional.silu(product(x, gate)) * product(x, up)


def head_outputs(shape: Shape, layer: Layer, residual: Tensor) -> Tensor:
    """What the attention heads put out, before the output projection: bfloat16 of shape (rows, length, H)."""
    outputs = []
    cosine, sine = _rotation(shape, residual.shape[1])
    for part in residual.split(_ROWS_AT_ONCE):
        rows, length, _ = part.shape
        x = rms_norm(part, layer.input_norm, shape.norm_epsilon)
        q, k, v = (
            product(x, w).view(rows, length, -1, shape.head).transpose(1, 2) for w in (layer.q, layer.k, layer.v)
        )
        groups = shape.heads // shape.kv_heads
        k, v = _rotate(k, cosine, sine).repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        q = _rotate(q, cosine, sine)
        if not computes_bfloat16():
            q, k, v = q.float(), k.float(), v.float()
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True).bfloat16()
        outputs.append(out.transpose(1, 2).reshape(rows, length, shape.hidden))
    return torch.cat(outputs)


def neuron_outputs(layer: Layer, x: Tensor) -> Tensor:
    """What the neurons of the FFN put out for normed inputs (n, H): bfloat16 of shape (n, F)."""
    return gated_neurons(x, layer.gate, layer.up)


def run_layer(shape: Shape, layer: Layer, residual: Tensor) -> tuple[Tensor, Tensor]:
    """Residual stream after the attention and after the whole layer, each float32 of shape (rows, length, H)."""
    middle = residual + product(head_outputs(shape, layer, residual), layer.o).float()
    after = [
        part + product(neuron_outputs(layer, rms_norm(part, layer.post_norm, shape.norm_epsilon)), layer.down).float()
        for part in middle.split(_ROWS_AT_ONCE)
    ]
    return middle, torch.cat(after)


def _rotation(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    exponents = torch.arange(0, shape.head, 2, dtype=torch.float32) / shape.head
    angles = torch.arange(length, dtype=torch.float32)[:, None] / shape.rope_theta**exponents
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().bfloat16(), angles.sin().bfloat16()


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine
