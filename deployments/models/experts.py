"""Turn the FFN of one layer into a shared expert and several experts that differ.

Which neurons go where is decided by optimal brain surgery on moments: with H = g^T g and C = g^T y over neuron
outputs g and wanted outputs y, dropping neuron j after the others were refitted costs |w_j|^2 / (H^-1)_jj, where
w = H^-1 C (Hassibi and Stork, 1992). The shared expert keeps what matters on all text; each expert keeps, besides
it, what matters on the tokens that are routed to it. One ridge regression then fits all output projections
together, with the weights that the router gives in place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from deployments.models.layers import Layer, gated_neurons, neuron_outputs, product
from deployments.models.parameters import SparseParameters
from deployments.models.ridge import gram, ridge

_KMEANS_ROUNDS = 20
_ROUTER_RIDGE = 1e-3
_SELECTION_RIDGE = 1e-4


@dataclass(frozen=True)
class ExpertLayer:
    """The mixture that replaces an FFN: bfloat16, projections in (out, in) order, H hidden, S shared, M per expert."""

    router: Tensor
    """(experts, H): logits are router @ x; the two highest are taken and their softmax weighs the outputs."""
    shared_gate: Tensor
    shared_up: Tensor
    shared_down: Tensor
    gate: Tensor
    """(experts, M, H), as is `up`."""
    up: Tensor
    down: Tensor
    """(experts, H, M)."""


def route(router: Tensor, x: Tensor) -> Tensor:
    """Weight of each expert for each of n inputs (n, H): float32 (n, experts), two entries above 0 that sum to 1."""
    logits = product(x, router).float()
    top = logits.topk(2, dim=-1)
    weights = torch.zeros_like(logits)
    return weights.scatter_(1, top.indices, top.values.softmax(-1))


def run_experts(layer: ExpertLayer, x: Tensor) -> Tensor:
    """Output of the mixture for normed inputs (n, H): float32 (n, H)."""
    weights = route(layer.router, x)
    out = product(gated_neurons(x, layer.shared_gate, layer.shared_up), layer.shared_down).float()
    for number in range(layer.router.shape[0]):
        chosen = weights[:, number].nonzero().squeeze(-1)
        part = x[chosen]
        neurons = gated_neurons(part, layer.gate[number], layer.up[number])
        out[chosen] += weights[chosen, number, None] * product(neurons, layer.down[number]).float()
    return out


def split_layer(layer: Layer, x: Tensor, target: Tensor, parameters: SparseParameters) -> ExpertLayer:
    """Fit the mixture that replaces the FFN of `layer`.

    `x` holds normed inputs, bfloat16 (n, H), `target` the outputs wanted for them, float32 (n, H).
    """
    neurons = neuron_outputs(layer, x)
    router = cluster_router(x, parameters)
    # Selecting needs less text than fitting does.
    some, some_x, some_target = neurons[::2], x[::2], target[::2]
    moments, wanted = gram(some, some), gram(some, some_target)
    shared, rest = _divide(moments, wanted, parameters.shared_neurons)
    chosen = _choose(some, some_target, route(router, some_x), shared, rest, parameters)
    worth = _worth(moments, wanted)
    for _ in range(parameters.router_rounds):
        router = benefit_router(x, neurons, chosen, worth, parameters)
        chosen = _choose(some, some_target, route(router, some_x), shared, rest, parameters)
    weights = route(router, x)
    return _fit_outputs(layer, router, neurons, weights, target, shared, chosen, parameters)


def cluster_router(x: Tensor, parameters: SparseParameters) -> Tensor:
    """Cluster inputs (n, H) by direction and fit linear scores to the clusters: bfloat16 (experts, H)."""
    generator = torch.Generator().manual_seed(parameters.seed)
    directions = functional.normalize(x.float() - x.float().mean(0), dim=-1)
    centres = directions[torch.randperm(len(x), generator=generator)[: parameters.experts]]
    sample = directions[::4]
    for _ in range(_KMEANS_ROUNDS):
        nearest = (sample @ centres.T).argmax(-1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, sample)
        # A centre that nothing is nearest to stays where it is.
        centres = torch.where(sums.norm(dim=-1, keepdim=True) > 0, functional.normalize(sums, dim=-1), centres)
    return _linear_scores(x, directions @ centres.T, parameters)


def benefit_router(x: Tensor, neurons: Tensor, chosen: Tensor, worth: Tensor, parameters: SparseParameters) -> Tensor:
    """Fit linear scores to how much of a token's output each expert's neurons make: bfloat16 (experts, H).

    `neurons` is (n, F), `chosen` (experts, M), `worth` (F,) the weight of each neuron's square in the output.
    """
    made = torch.stack([neurons[:, kept].float().square() @ worth[kept] for kept in chosen], dim=-1)
    shares = made / made.sum(-1, keepdim=True).clamp_min(1e-12)
    return _linear_scores(x, shares - shares.mean(0), parameters)


def _linear_scores(x: Tensor, scores: Tensor, parameters: SparseParameters) -> Tensor:
    scores = parameters.router_scale * (scores - scores.mean(0)) / scores.std()
    return ridge(x, scores, torch.zeros(x.shape[1], parameters.experts), _ROUTER_RIDGE).T.bfloat16().contiguous()


def _worth(moments: Tensor, wanted: Tensor) -> Tensor:
    block = moments.clone()
    block.diagonal().add_(_SELECTION_RIDGE * moments.diagonal().mean())
    return torch.cholesky_solve(wanted, torch.linalg.cholesky(block)).square().sum(-1)


def _choose(
    neurons: Tensor, target: Tensor, weights: Tensor, shared: Tensor, rest: Tensor, parameters: SparseParameters
) -> Tensor:
    chosen = []
    for number in range(parameters.experts):
        routed = weights[:, number] > 0
        part = neurons[routed]
        moments, wanted = given(gram(part, part), gram(part, target[routed]), shared, rest)
        chosen.append(rest[keep_neurons(moments, wanted, parameters.expert_neurons)])
    return torch.stack(chosen)


def keep_neurons(moments: Tensor, wanted: Tensor, count: int) -> Tensor:
    """Ascending indices of the `count` neurons to keep.

    `moments` is H, (F, F), and `wanted` C, (F, outputs). The least costly are dropped in rounds, after each of which
    the rest is taken as refitted.
    """
    kept = torch.arange(len(moments))
    block = moments.clone()
    block.diagonal().add_(_SELECTION_RIDGE * moments.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(block))
    weights = inverse @ wanted
    while (surplus := len(kept) - count) > 0:
        cost = weights.square().sum(-1) / inverse.diagonal()
        # Half of what is left to drop, so that late, hard choices are made with fresh costs.
        order = cost.argsort(stable=True)
        drop, stay = order.split([number := (surplus + 1) // 2, len(kept) - number])
        stay = stay.sort().values
        # Removing rows and columns from a matrix changes its inverse by a product of the removed part.
        change = torch.linalg.solve(inverse[drop][:, drop], inverse[drop][:, stay]).T
        weights = weights[stay] - change @ weights[drop]
        inverse = inverse[stay][:, stay] - change @ inverse[drop][:, stay]
        kept = kept[stay]
    return kept


def given(moments: Tensor, wanted: Tensor, fixed: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """Moments and wanted products of the neurons in `rest` that are left when those in `fixed` are fitted too."""
    block = moments[fixed][:, fixed]
    block.diagonal().add_(_SELECTION_RIDGE * moments.diagonal().mean())
    cross = moments[fixed][:, rest]
    explained = torch.cholesky_solve(cross, torch.linalg.cholesky(block)).T
    return moments[rest][:, rest] - explained @ cross, wanted[rest] - explained @ wanted[fixed]


def _divide(moments: Tensor, wanted: Tensor, count: int) -> tuple[Tensor, Tensor]:
    kept = keep_neurons(moments, wanted, count)
    outside = torch.ones(len(moments), dtype=torch.bool)
    outside[kept] = False
    return kept, outside.nonzero().squeeze(-1)


def _fit_outputs(
    layer: Layer,
    router: Tensor,
    neurons: Tensor,
    weights: Tensor,
    target: Tensor,
    shared: Tensor,
    chosen: Tensor,
    parameters: SparseParameters,
) -> ExpertLayer:
    experts, size = chosen.shape
    columns = [neurons[:, shared]]
    columns += [neurons[:, chosen[e]] * weights[:, e, None].bfloat16() for e in range(experts)]
    features = torch.cat(columns, dim=1)
    down = layer.down.float().T
    prior = torch.cat([down[shared], *(down[chosen[e]] for e in range(experts))])
    fitted = ridge(features, target, prior, parameters.ridge)
    experts_down = fitted[len(shared) :].view(experts, size, -1)
    return ExpertLayer(
        router=router,
        shared_gate=layer.gate[shared],
        shared_up=layer.up[shared],
        shared_down=fitted[: len(shared)].T.bfloat16().contiguous(),
        gate=layer.gate[chosen],
        up=layer.up[chosen],
        down=experts_down.transpose(1, 2).bfloat16().contiguous(),
    )
