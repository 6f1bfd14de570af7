"""Neurons go where they matter, routers follow the text, and the mixture is what an engine will compute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deployments.models import layers
from deployments.models.experts import ExpertLayer, given, keep_neurons, route, run_experts, split_layer
from deployments.models.parameters import SparseParameters
from deployments.models.ridge import gram
from tests.unit.models.tiny_llama import write_tiny_llama

_PARAMETERS = SparseParameters(experts=4, shared_neurons=24, expert_neurons=12, ridge=1e-3)


def test_neurons_that_others_can_replace_are_dropped_first() -> None:
    generator = torch.Generator().manual_seed(0)
    neurons = torch.randn(500, 6, generator=generator)
    neurons[:, 4] = neurons[:, 0] + neurons[:, 1]
    target = neurons @ torch.diag(torch.tensor([3.0, 3.0, 3.0, 3.0, 3.0, 0.1]))
    kept = keep_neurons(gram(neurons, neurons), gram(neurons, target), 4)
    assert {2, 3} <= set(kept.tolist()), "what nothing else can stand in for stays"
    assert 5 not in kept.tolist(), "what hardly shows in the output goes"


def test_dropping_in_rounds_keeps_costs_exact() -> None:
    generator = torch.Generator().manual_seed(1)
    neurons = torch.randn(900, 120, generator=generator) @ torch.randn(120, 120, generator=generator)
    target = torch.randn(900, 8, generator=generator)
    moments, wanted = gram(neurons, neurons), gram(neurons, target)
    kept = keep_neurons(moments, wanted, 60)
    assert len(kept) == 60 and len(set(kept.tolist())) == 60

    def left(columns: torch.Tensor) -> float:
        chosen = neurons[:, columns]
        return float((target - chosen @ torch.linalg.lstsq(chosen, target).solution).square().sum())

    chance = [left(torch.randperm(120, generator=generator)[:60]) for _ in range(20)]
    assert left(kept) < min(chance)


def test_what_is_fixed_is_taken_out_of_the_rest() -> None:
    generator = torch.Generator().manual_seed(2)
    neurons = torch.randn(400, 10, generator=generator)
    target = torch.randn(400, 3, generator=generator)
    fixed, rest = torch.arange(6), torch.arange(6, 10)
    moments, wanted = given(gram(neurons, neurons), gram(neurons, target), fixed, rest)
    own, other = neurons[:, rest], neurons[:, fixed]
    clean = own - other @ torch.linalg.lstsq(other, own).solution
    assert torch.allclose(moments, clean.T @ clean, atol=0.5)
    assert torch.allclose(wanted, clean.T @ target, atol=0.5)


def test_two_experts_take_each_token_and_their_weights_sum_to_one() -> None:
    generator = torch.Generator().manual_seed(3)
    weights = route(
        torch.randn(4, 32, generator=generator).bfloat16(), torch.randn(50, 32, generator=generator).bfloat16()
    )
    assert ((weights > 0).sum(-1) == 2).all()
    assert torch.allclose(weights.sum(-1), torch.ones(50))


@pytest.fixture
def split(tmp_path: Path) -> tuple[layers.Layer, torch.Tensor, torch.Tensor, ExpertLayer]:
    write_tiny_llama(tmp_path)
    layer = layers.load_stack(tmp_path).layers[0]
    generator = torch.Generator().manual_seed(4)
    centres = torch.randn(4, 32, generator=generator) * 2
    # In no regular order: selection and clustering look at every second and every fourth input.
    clusters = torch.randint(4, (1600,), generator=generator)
    x = (centres[clusters] + torch.randn(1600, 32, generator=generator)).bfloat16()
    wanted = (layers.neuron_outputs(layer, x) @ layer.down.T).float()
    return layer, x, wanted, split_layer(layer, x, wanted, _PARAMETERS)


def test_experts_differ_and_together_come_close_to_the_whole(
    split: tuple[layers.Layer, torch.Tensor, torch.Tensor, ExpertLayer],
) -> None:
    _, x, wanted, mixture = split
    assert mixture.gate.shape == (4, 12, 32) and mixture.shared_gate.shape == (24, 32)
    error = (run_experts(mixture, x) - wanted).norm() / wanted.norm()
    assert error < 0.2
    for first in range(4):
        for second in range(first):
            assert not torch.equal(mixture.gate[first], mixture.gate[second])
    order = torch.tensor([1, 0, 2, 3])
    swapped = replace(mixture, gate=mixture.gate[order], up=mixture.up[order], down=mixture.down[order])
    assert (run_experts(swapped, x) - wanted).norm() / wanted.norm() > 1.2 * error


def test_a_fit_is_the_same_each_time(
    split: tuple[layers.Layer, torch.Tensor, torch.Tensor, ExpertLayer],
) -> None:
    layer, x, wanted, mixture = split
    again = split_layer(layer, x, wanted, _PARAMETERS)
    assert torch.equal(mixture.router, again.router)
    assert torch.equal(mixture.gate, again.gate)
