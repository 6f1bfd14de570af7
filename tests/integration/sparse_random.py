"""A small Qwen2-MoE whose experts are random, each its own: an error that swaps two of them shows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

LAYERS, EXPERTS, TOP_K, HIDDEN, INTERMEDIATE = 4, 8, 2, 128, 64
VOCABULARY = 49_152


def write_random_sparse(folder: Path, tokenizer_of: Path, exchanged: tuple[int, int] | None = None) -> None:
    """Write the checkpoint. `exchanged`: two experts that have each other's weights, in every layer."""
    generator = torch.Generator().manual_seed(7)

    def noise(*shape: int, scale: float = 0.15) -> torch.Tensor:
        return (scale * torch.randn(*shape, generator=generator)).bfloat16()

    ones = torch.ones(HIDDEN, dtype=torch.bfloat16)
    tensors = {"model.embed_tokens.weight": noise(VOCABULARY, HIDDEN, scale=1.0), "model.norm.weight": ones}
    for layer in range(LAYERS):
        named = {"input_layernorm.weight": ones.clone(), "post_attention_layernorm.weight": ones.clone()}
        for name in "qkv":
            named[f"self_attn.{name}_proj.weight"] = noise(HIDDEN, HIDDEN)
            named[f"self_attn.{name}_proj.bias"] = torch.zeros(HIDDEN, dtype=torch.bfloat16)
        named["self_attn.o_proj.weight"] = noise(HIDDEN, HIDDEN)
        named["mlp.gate.weight"] = noise(EXPERTS, HIDDEN)
        named["mlp.shared_expert_gate.weight"] = noise(1, HIDDEN)
        names = {f"mlp.experts.{number}": f"mlp.experts.{number}" for number in range(EXPERTS)}
        if exchanged is not None:
            one, other = (f"mlp.experts.{number}" for number in exchanged)
            names[one], names[other] = other, one
        for name in ["mlp.shared_expert", *names]:
            stored = names.get(name, name)
            named[f"{stored}.gate_proj.weight"] = noise(INTERMEDIATE, HIDDEN)
            named[f"{stored}.up_proj.weight"] = noise(INTERMEDIATE, HIDDEN)
            named[f"{stored}.down_proj.weight"] = noise(HIDDEN, INTERMEDIATE, scale=0.5)
        tensors |= {f"model.layers.{layer}.{name}": tensor for name, tensor in named.items()}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copyfile(tokenizer_of / name, folder / name)
    config = json.loads((tokenizer_of / "config.json").read_text())
    config |= {"hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": VOCABULARY}
    config |= {"architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "decoder_sparse_step": 1}
    config |= {"mlp_only_layers": [], "moe_intermediate_size": INTERMEDIATE, "norm_topk_prob": True, "qkv_bias": True}
    config |= {"num_experts": EXPERTS, "num_experts_per_tok": TOP_K, "shared_expert_intermediate_size": INTERMEDIATE}
    config |= {"tie_word_embeddings": True, "use_sliding_window": False}
    (folder / "config.json").write_text(json.dumps(config))
