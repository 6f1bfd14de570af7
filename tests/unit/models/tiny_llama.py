"""A Llama model of a few thousand weights, as a checkpoint and as a stack."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def write_tiny_llama(folder: Path, layers: int = 8) -> LlamaForCausalLM:
    """Write a seeded bfloat16 checkpoint with the empty files that a model folder has, and return the model."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        initializer_range=0.15,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).bfloat16().eval()
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_text("{}")
    return model
