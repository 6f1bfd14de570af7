"""The sparse model: the dense one as a mixture of experts that differ, in the form of Qwen2-MoE.

Layers are replaced from the first to the last. Each is fitted on what the layers replaced before it really put out,
towards a target that undoes part of the error they made.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from deployments.models import layers
from deployments.models.corpus import training_tokens
from deployments.models.experts import ExpertLayer, run_experts, split_layer
from deployments.models.layers import Layer, Stack, product
from deployments.models.parameters import SparseParameters
from deployments.models.ridge import ridge
from deployments.models.store import Progress

COPIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
_ROWS_AT_ONCE = 16


@dataclass(frozen=True)
class SparseLayer:
    """One replaced layer: the attention's output projection (H, H) bfloat16, and the mixture."""

    o: Tensor
    experts: ExpertLayer


def write_sparse(
    dense: Path, conversations: Path, folder: Path, parameters: SparseParameters, progress: Progress
) -> None:
    """Fit the sparse model to the one in `dense`, on text and on `conversations`, and write it into `folder`."""
    progress("sparse: preparing text", 0.0)
    stack = layers.load_stack(dense)
    tokens = training_tokens(dense, conversations, parameters.tokens)
    fitted: list[SparseLayer] = []
    for layer in fit_layers(stack, tokens, parameters):
        fitted.append(layer)
        progress(f"sparse: fitted layer {len(fitted)} of {stack.shape.layers}", 0.98 * len(fitted) / stack.shape.layers)
    write_checkpoint(dense, folder, stack, fitted, parameters)


@torch.no_grad()
def fit_layers(stack: Stack, tokens: Tensor, parameters: SparseParameters) -> Iterator[SparseLayer]:
    """Yield the replaced layers, first to last, fitted on `tokens`, int64 (rows, length)."""
    teacher = student = layers.embed(stack, tokens)
    for layer in stack.layers:
        replaced, teacher, student = fit_layer(stack, layer, teacher, student, parameters)
        yield replaced


@torch.no_grad()
def fit_layer(
    stack: Stack, layer: Layer, teacher: Tensor, student: Tensor, parameters: SparseParameters
) -> tuple[SparseLayer, Tensor, Tensor]:
    """Fit the replacement of one layer, given the dense and the sparse model's residual streams in front of it.

    Streams are float32 (rows, length, H). Returns the layer and both streams behind it.
    """
    shape, share = stack.shape, parameters.correction
    teacher_middle, teacher = layers.run_layer(shape, layer, teacher)
    heads = layers.head_outputs(shape, layer, student).flatten(0, 1)
    wanted = (1 - share) * product(heads, layer.o).float() + share * (teacher_middle - student).flatten(0, 1)
    o = ridge(heads, wanted, layer.o.float().T, parameters.ridge).T.bfloat16().contiguous()
    middle = student + product(heads, o).float().view(student.shape)
    x = layers.rms_norm(middle, layer.post_norm, shape.norm_epsilon).flatten(0, 1)
    wanted = share * (teacher - middle).flatten(0, 1)
    wanted += (1 - share) * product(layers.neuron_outputs(layer, x), layer.down).float()
    replaced = SparseLayer(o, split_layer(layer, x, wanted, parameters))
    return replaced, teacher, middle + run_experts(replaced.experts, x).view(middle.shape)


@torch.no_grad()
def run_sparse_layer(stack: Stack, layer: Layer, replaced: SparseLayer, residual: Tensor) -> Tensor:
    """Residual stream (rows, length, H) after a replaced layer."""
    middle = residual + product(layers.head_outputs(stack.shape, layer, residual), replaced.o).float()
    outputs = []
    for part in middle.split(_ROWS_AT_ONCE):
        x = layers.rms_norm(part, layer.post_norm, stack.shape.norm_epsilon).flatten(0, 1)
        outputs.append(part + run_experts(replaced.experts, x).view(part.shape))
    return torch.cat(outputs)


def write_checkpoint(
    dense: Path, folder: Path, stack: Stack, fitted: list[SparseLayer], parameters: SparseParameters
) -> None:
    """Write fitted layers as a Qwen2-MoE checkpoint with the dense model's tokenizer and template."""
    tensors = {"model.embed_tokens.weight": stack.embedding, "model.norm.weight": stack.norm}
    for number, (layer, replaced) in enumerate(zip(stack.layers, fitted, strict=True)):
        named = _attention_tensors(layer, replaced.o) | _mixture_tensors(replaced.experts)
        tensors |= {f"model.layers.{number}.{name}": tensor.contiguous() for name, tensor in named.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    source = json.loads((dense / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(_config(source, parameters), indent=2), encoding="utf-8")
    for name in COPIED:
        shutil.copyfile(dense / name, folder / name)


def _attention_tensors(layer: Layer, o: Tensor) -> dict[str, Tensor]:
    named = {
        "input_layernorm.weight": layer.input_norm,
        "post_attention_layernorm.weight": layer.post_norm,
        "self_attn.o_proj.weight": o,
    }
    # Qwen2 has biases where Llama has none.
    for name, weight in (("q", layer.q), ("k", layer.k), ("v", layer.v)):
        named[f"self_attn.{name}_proj.weight"] = weight
        named[f"self_attn.{name}_proj.bias"] = torch.zeros(len(weight), dtype=torch.bfloat16)
    return named


def _mixture_tensors(experts: ExpertLayer) -> dict[str, Tensor]:
    named = {
        "mlp.gate.weight": experts.router,
        "mlp.shared_expert.gate_proj.weight": experts.shared_gate,
        "mlp.shared_expert.up_proj.weight": experts.shared_up,
        # Qwen2-MoE weighs the shared expert by a sigmoid, which is 1/2 for a gate of zeros; twice that is 1.
        "mlp.shared_expert.down_proj.weight": 2 * experts.shared_down,
        "mlp.shared_expert_gate.weight": torch.zeros(1, experts.router.shape[1], dtype=torch.bfloat16),
    }
    for number in range(len(experts.router)):
        named[f"mlp.experts.{number}.gate_proj.weight"] = experts.gate[number].clone()
        named[f"mlp.experts.{number}.up_proj.weight"] = experts.up[number].clone()
        named[f"mlp.experts.{number}.down_proj.weight"] = experts.down[number].clone()
    return named


def _config(dense: dict[str, object], parameters: SparseParameters) -> dict[str, object]:
    taken = (
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "hidden_act",
        "hidden_size",
        "initializer_range",
        "intermediate_size",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "pad_token_id",
        "rms_norm_eps",
        "rope_parameters",
        "tie_word_embeddings",
        "transformers_version",
        "vocab_size",
    )
    return {name: dense[name] for name in taken if name in dense} | {
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": parameters.expert_neurons,
        "norm_topk_prob": True,
        "num_experts": parameters.experts,
        "num_experts_per_tok": 2,
        "qkv_bias": True,
        "shared_expert_intermediate_size": parameters.shared_neurons,
        "use_sliding_window": False,
    }
