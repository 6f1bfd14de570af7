"""The layer-by-layer forward pass is the reference implementation's."""

from __future__ import annotations

from pathlib import Path

import torch

from deployments.models import layers
from tests.unit.models.tiny_llama import write_tiny_llama


def test_the_stack_agrees_with_transformers(tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path)
    stack = layers.load_stack(tmp_path)
    tokens = torch.randint(0, 96, (3, 40), generator=torch.Generator().manual_seed(1))
    residual = layers.embed(stack, tokens)
    for layer in stack.layers:
        _, residual = layers.run_layer(stack.shape, layer, residual)
    ours = layers.rms_norm(residual, stack.norm, stack.shape.norm_epsilon) @ stack.embedding.T
    with torch.no_grad():
        theirs = model.float()(tokens).logits
    assert (ours.float() - theirs).norm() / theirs.norm() < 0.03


def test_every_token_sees_only_those_before_it(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path)
    stack = layers.load_stack(tmp_path)
    tokens = torch.randint(0, 96, (1, 20), generator=torch.Generator().manual_seed(2))
    changed = tokens.clone()
    changed[0, 12] = (changed[0, 12] + 1) % 96
    before, after = (layers.embed(stack, each) for each in (tokens, changed))
    for layer in stack.layers:
        before, after = (layers.run_layer(stack.shape, layer, each)[1] for each in (before, after))
    assert torch.equal(before[0, :12], after[0, :12])
    assert not torch.equal(before[0, 12], after[0, 12])
