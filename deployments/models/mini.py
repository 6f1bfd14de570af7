"""The mini model: the dense one in int8, or with its least important layers replaced, or both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from deployments.models import layers
from deployments.models.corpus import training_tokens
from deployments.models.depth import least_important, remove_layers
from deployments.models.layers import LAYER_KEYS, Layer, Stack
from deployments.models.parameters import MiniParameters
from deployments.models.quantize import quantization_config, quantize_tensors
from deployments.models.store import Progress

_CHOICE_STEP = 6
"""One sequence of so many is enough to choose layers by."""
COPIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def write_mini(dense: Path, conversations: Path, folder: Path, parameters: MiniParameters, progress: Progress) -> None:
    """Make the mini model from the one in `dense`, fitted on text and on `conversations`, and write it into `folder`."""
    progress("mini: preparing text", 0.0)
    stack = layers.load_stack(dense)
    tokens = training_tokens(dense, conversations, parameters.tokens)
    progress("mini: choosing layers", 0.02)
    removed = least_important(stack, tokens[::_CHOICE_STEP], parameters.removed_layers, parameters.longest_run)

    def report(number: int) -> None:
        progress(f"mini: fitting layer {number + 1} of {stack.shape.layers}", 0.1 + 0.85 * number / stack.shape.layers)

    kept = remove_layers(stack, tokens, removed, parameters, report)
    progress("mini: writing", 0.95)
    write_checkpoint(dense, folder, stack, kept, int8=parameters.int8)


def write_checkpoint(dense: Path, folder: Path, stack: Stack, kept: list[Layer], *, int8: bool) -> None:
    """Write layers as a Llama checkpoint, in int8 or bfloat16, with the dense model's tokenizer and template."""
    tensors: dict[str, Tensor] = {"model.embed_tokens.weight": stack.embedding, "model.norm.weight": stack.norm}
    for number, layer in enumerate(kept):
        for name, key in LAYER_KEYS.items():
            tensors[f"model.layers.{number}.{key}.weight"] = getattr(layer, name).contiguous()
    config = json.loads((dense / "config.json").read_text(encoding="utf-8"))
    config["num_hidden_layers"] = len(kept)
    if int8:
        # The embedding stays bfloat16 for lookups; its int8 copy is the output head, which reads all of it per token.
        tensors = quantize_tensors(tensors | {"lm_head.weight": stack.embedding.clone()})
        config |= {"tie_word_embeddings": False, "quantization_config": quantization_config()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    for name in COPIED:
        shutil.copyfile(dense / name, folder / name)
