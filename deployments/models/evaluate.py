"""Measure a model folder: perplexity on held-out text, and how much its experts differ.

Runs the checkpoint as written, through transformers and in the number format that an engine on this processor takes,
so what is measured is what is served. int8 checkpoints
are run with their activations rounded per token as the engine rounds them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from deployments.models import text
from deployments.models.text import KINDS, Kind
from deployments.processor import working_dtype

_ROWS_AT_ONCE = 4
HELD_OUT_TOKENS = 6144
"""Tokens of each kind that are measured on unless told otherwise; `docs/models.md` says what its tables are of."""


def load_model(folder: Path) -> PreTrainedModel:
    """Load a checkpoint for measuring. Raises OSError or ValueError when it cannot be loaded."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" in config:
        return _load_int8(folder)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=working_dtype())
    model.eval()
    return model


def held_out(folder: Path, kind: Kind, tokens: int = HELD_OUT_TOKENS) -> Tensor:
    """Held-out text of one kind under the model's tokenizer: int64 (rows, length)."""
    return text.sequences(text.documents(kind, "held_out"), AutoTokenizer.from_pretrained(folder), tokens)


@torch.no_grad()
def perplexity(model: PreTrainedModel, tokens: Tensor) -> float:
    """Perplexity of a model on sequences, int64 (rows, length)."""
    loss = 0.0
    for rows in tokens.split(_ROWS_AT_ONCE):
        logits = model(rows).logits[:, :-1].float().flatten(0, 1)
        loss += float(functional.cross_entropy(logits, rows[:, 1:].flatten(), reduction="sum"))
    return math.exp(loss / tokens[:, 1:].numel())


def perplexities(folder: Path, tokens: int = HELD_OUT_TOKENS) -> dict[Kind, float]:
    """Perplexity of a model folder on each kind of held-out text."""
    model = load_model(folder)
    return {kind: perplexity(model, held_out(folder, kind, tokens)) for kind in KINDS}


@torch.no_grad()
def divergence(reference: PreTrainedModel, other: PreTrainedModel, tokens: Tensor) -> float:
    """Mean Kullback-Leibler divergence, nats, of `other`'s next-token distribution from `reference`'s.

    Both read the same sequences, int64 (rows, length), token by token.
    """
    return _divergence([_log_probabilities(reference, rows) for rows in tokens.split(1)], other, tokens)


@torch.no_grad()
def swap_divergence(model: PreTrainedModel, tokens: Tensor, first: int, second: int) -> float:
    """Mean divergence, nats, that swapping two experts of every layer makes; routers stay as they are.

    Raises ValueError when the model has no experts.
    """
    reference = [_log_probabilities(model, rows) for rows in tokens.split(1)]
    with _swapped(model, first, second):
        return _divergence(reference, model, tokens)


def answer(folder: Path, question: str, tokens: int = 40) -> str:
    """A model's greedy answer to one question."""
    # Its methods return unions that depend on their arguments.
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    model: Any = load_model(folder)
    out = model.generate(**prompt, max_new_tokens=tokens, do_sample=False, temperature=None, top_p=None)
    reply: str = tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return reply


def _log_probabilities(model: PreTrainedModel, rows: Tensor) -> Tensor:
    logits: Tensor = model(rows).logits
    return logits.float().log_softmax(-1)


def _divergence(reference: list[Tensor], other: PreTrainedModel, tokens: Tensor) -> float:
    total = 0.0
    for expected, rows in zip(reference, tokens.split(1), strict=True):
        found = _log_probabilities(other, rows)
        total += float(functional.kl_div(found, expected, log_target=True, reduction="sum"))
    return total / tokens.numel()


@contextmanager
def _swapped(model: PreTrainedModel, first: int, second: int) -> Iterator[None]:
    stacked = [
        parameter
        for name, parameter in model.named_parameters()
        if name.endswith((".experts.gate_up_proj", ".experts.down_proj"))
    ]
    if not stacked:
        raise ValueError("the model has no experts to swap")

    def swap() -> None:
        for parameter in stacked:
            parameter.data[[first, second]] = parameter.data[[second, first]]

    swap()
    try:
        yield
    finally:
        swap()


def _load_int8(folder: Path) -> PreTrainedModel:
    config = LlamaConfig.from_pretrained(folder)
    del config.quantization_config
    weights = load_file(folder / "model.safetensors")
    plain = {
        name: (tensor.float() * weights[f"{name}_scale"]).bfloat16() if tensor.dtype == torch.int8 else tensor
        for name, tensor in weights.items()
        if not name.endswith("_scale")
    }
    model = LlamaForCausalLM(config)
    model.load_state_dict(plain)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(_round_activations)
    # A cast, in effect: the method's own annotation is lost in a decorator.
    prepared: Any = model
    ready: PreTrainedModel = prepared.to(working_dtype()).eval()
    return ready


def _round_activations(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    x = inputs[0].float()
    scale = x.abs().amax(dim=-1, keepdim=True).clamp_min(1e-8) / 127
    return ((x / scale).round().mul(scale).to(inputs[0].dtype), *inputs[1:])
