"""What is written as a checkpoint computes what was fitted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from deployments.models import evaluate, layers, mini, sparse
from deployments.models.depth import least_important, remove_layers
from deployments.models.parameters import MiniParameters, SparseParameters
from deployments.models.quantize import quantize
from tests.unit.models.tiny_llama import write_tiny_llama

_TOKENS = torch.randint(0, 96, (16, 48), generator=torch.Generator().manual_seed(5))
_SPARSE = SparseParameters(experts=4, shared_neurons=24, expert_neurons=16)


def _logits(stack: layers.Stack, residual: torch.Tensor) -> torch.Tensor:
    return (layers.rms_norm(residual, stack.norm, stack.shape.norm_epsilon) @ stack.embedding.T).float()


def test_the_sparse_checkpoint_is_the_fitted_model(tmp_path: Path) -> None:
    dense, folder = tmp_path / "dense", tmp_path / "sparse"
    dense.mkdir()
    folder.mkdir()
    write_tiny_llama(dense)
    stack = layers.load_stack(dense)
    fitted = list(sparse.fit_layers(stack, _TOKENS, _SPARSE))
    sparse.write_checkpoint(dense, folder, stack, fitted, _SPARSE)
    residual = layers.embed(stack, _TOKENS)
    for layer, replaced in zip(stack.layers, fitted, strict=True):
        residual = sparse.run_sparse_layer(stack, layer, replaced, residual)
    ours = _logits(stack, residual)
    model = evaluate.load_model(folder)
    with torch.no_grad():
        theirs = model(_TOKENS).logits.float()
    assert (ours - theirs).norm() / theirs.norm() < 0.1
    assert evaluate.swap_divergence(model, _TOKENS, 0, 1) > 0
    assert evaluate.divergence(model, model, _TOKENS) == pytest.approx(0, abs=1e-6)


def test_the_swap_is_undone(tmp_path: Path) -> None:
    dense, folder = tmp_path / "dense", tmp_path / "sparse"
    dense.mkdir()
    folder.mkdir()
    write_tiny_llama(dense, layers=2)
    stack = layers.load_stack(dense)
    sparse.write_checkpoint(dense, folder, stack, list(sparse.fit_layers(stack, _TOKENS, _SPARSE)), _SPARSE)
    model = evaluate.load_model(folder)
    before = evaluate.perplexity(model, _TOKENS)
    evaluate.swap_divergence(model, _TOKENS, 2, 3)
    assert evaluate.perplexity(model, _TOKENS) == before


def test_a_dense_model_has_no_experts_to_swap(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path)
    with pytest.raises(ValueError, match="no experts"):
        evaluate.swap_divergence(evaluate.load_model(tmp_path), _TOKENS, 0, 1)


def test_without_removed_layers_nothing_is_fitted(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path)
    stack = layers.load_stack(tmp_path)
    assert least_important(stack, _TOKENS, 0, 1) == []
    kept = remove_layers(stack, _TOKENS, [], MiniParameters(), lambda number: None)
    assert all(one is other for one, other in zip(kept, stack.layers, strict=True))


def test_a_fit_in_place_of_a_layer_beats_leaving_it_out(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path)
    stack = layers.load_stack(tmp_path)
    removed = least_important(stack, _TOKENS, 2, 1)
    assert len(removed) == 2 and removed[1] - removed[0] > 2 and min(removed) >= 2 and max(removed) <= 5
    kept = remove_layers(stack, _TOKENS, removed, MiniParameters(correction=1.0), lambda number: None)
    plain = [layer for number, layer in enumerate(stack.layers) if number not in removed]

    def after(chosen: list[layers.Layer]) -> torch.Tensor:
        residual = layers.embed(stack, _TOKENS)
        for layer in chosen:
            residual = layers.run_layer(stack.shape, layer, residual)[1]
        return residual

    whole = after(stack.layers)
    assert (after(kept) - whole).norm() < 0.7 * (after(plain) - whole).norm()


def test_too_many_layers_are_refused(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path)
    with pytest.raises(ValueError, match="cannot be removed"):
        least_important(layers.load_stack(tmp_path), _TOKENS, 4, 1)


def test_the_mini_checkpoint_is_int8_and_close(tmp_path: Path) -> None:
    dense, folder = tmp_path / "dense", tmp_path / "mini"
    dense.mkdir()
    folder.mkdir()
    write_tiny_llama(dense)
    stack = layers.load_stack(dense)
    mini.write_checkpoint(dense, folder, stack, stack.layers, int8=True)
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["format"] == "int-quantized"
    reference = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.bfloat16)
    with torch.no_grad():
        theirs = reference(_TOKENS).logits.float()
        ours = evaluate.load_model(folder)(_TOKENS).logits.float()
    assert 0 < (ours - theirs).norm() / theirs.norm() < 0.1


def test_without_int8_the_layers_that_stay_are_written_as_they_are(tmp_path: Path) -> None:
    dense, folder = tmp_path / "dense", tmp_path / "mini"
    dense.mkdir()
    folder.mkdir()
    write_tiny_llama(dense)
    stack = layers.load_stack(dense)
    mini.write_checkpoint(dense, folder, stack, stack.layers[:6], int8=False)
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config and config["num_hidden_layers"] == 6
    stack.layers = stack.layers[:6]
    residual = layers.embed(stack, _TOKENS)
    for layer in stack.layers:
        residual = layers.run_layer(stack.shape, layer, residual)[1]
    ours = _logits(stack, residual)
    with torch.no_grad():
        theirs = evaluate.load_model(folder)(_TOKENS).logits.float()
    assert (ours - theirs).norm() / theirs.norm() < 0.1


def test_rounding_stays_within_half_a_step() -> None:
    weight = torch.randn(7, 33, generator=torch.Generator().manual_seed(6)).bfloat16()
    whole, scale = quantize(weight)
    assert whole.dtype == torch.int8 and scale.shape == (7, 1)
    assert ((whole.float() * scale - weight.float()).abs() <= scale * 0.5001).all()
