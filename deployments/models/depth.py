"""Remove whole layers and let the layer in front of them stand in for them, in closed form.

ReplaceMe (arXiv 2505.02819) fits a linear map from what an FFN puts out to what the residual stream holds after the
removed layers, and merges it into the FFN's output projection. Here that projection itself is fitted, from the
neurons, which contains every such map. The layers behind are then refitted, first to last, on what really reaches
them, which undoes part of what is left of the error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from deployments.models import layers
from deployments.models.layers import Layer, Stack, product
from deployments.models.parameters import MiniParameters
from deployments.models.ridge import ridge


@torch.no_grad()
def least_important(stack: Stack, tokens: Tensor, count: int, longest: int) -> list[int]:
    """Choose `count` layers to remove, in runs of at most `longest` neighbours.

    The importance of a run is the mean cosine distance between the residual stream in front of it and behind it on
    `tokens`, int64 (rows, length); the least important run is taken, then the least important of the rest. Two runs
    keep two layers between them, and the first and the last two layers stay.
    """
    residual = layers.embed(stack, tokens)
    states = [residual.bfloat16()]
    for layer in stack.layers:
        residual = layers.run_layer(stack.shape, layer, residual)[1]
        states.append(residual.bfloat16())
    removed: list[int] = []
    while len(removed) < count:
        size = min(longest, count - len(removed))
        free = [
            start
            for start in range(2, stack.shape.layers - 1 - size)
            if all(start - 3 >= gone or gone >= start + size + 2 for gone in removed)
        ]
        if not free:
            raise ValueError(f"{count} layers in runs of {longest} cannot be removed from {stack.shape.layers}")
        best = min(free, key=lambda start: _distance(states[start], states[start + size]))
        removed += range(best, best + size)
    return sorted(removed)


def _distance(before: Tensor, after: Tensor) -> float:
    return 1 - float(functional.cosine_similarity(before.float(), after.float(), dim=-1).mean())


@torch.no_grad()
def remove_layers(
    stack: Stack, tokens: Tensor, removed: list[int], parameters: MiniParameters, report: Callable[[int], None]
) -> list[Layer]:
    """The layers that stay, refitted on `tokens`, int64 (rows, length).

    `report` is called with the number of each layer as it is done.
    """
    shape, share = stack.shape, parameters.correction
    teacher = student = layers.embed(stack, tokens)
    kept: list[Layer] = []
    exact = True
    for number, layer in enumerate(stack.layers):
        report(number)
        if number in removed:
            continue
        middle, teacher = layers.run_layer(shape, layer, teacher)
        stands_in = number + 1 in removed
        for skipped in range(number + 1, shape.layers):
            if skipped not in removed:
                break
            teacher = layers.run_layer(shape, stack.layers[skipped], teacher)[1]
        if exact and not stands_in:
            student = teacher
            kept.append(layer)
            continue
        heads = layers.head_outputs(shape, layer, student).flatten(0, 1)
        o = layer.o
        if not exact:
            wanted = (1 - share) * product(heads, o).float() + share * (middle - student).flatten(0, 1)
            o = ridge(heads, wanted, o.float().T, parameters.ridge).T.bfloat16().contiguous()
        after_attention = student + product(heads, o).float().view(student.shape)
        x = layers.rms_norm(after_attention, layer.post_norm, shape.norm_epsilon).flatten(0, 1)
        neurons = layers.neuron_outputs(layer, x)
        wanted = (teacher - after_attention).flatten(0, 1)
        if not stands_in:
            wanted = share * wanted + (1 - share) * product(neurons, layer.down).float()
        down = ridge(neurons, wanted, layer.down.float().T, parameters.ridge).T.bfloat16().contiguous()
        student = after_attention + product(neurons, down).float().view(student.shape)
        kept.append(replace(layer, o=o, down=down))
        exact = False
    return kept
