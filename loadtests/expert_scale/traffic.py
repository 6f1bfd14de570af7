"""Requests, and which experts their tokens go to: the recorded unevenness of a small model, spread over a large one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from cluster.experts.load import Counts, ExpertShape
from cluster.experts.placement import Reals
from loadtests.expert_scale.scene import Scene

DATA: Final = Path(__file__).parent.parent / "data" / "expert_heat.json"
"""Written by `python -m loadtests.expert_record`."""


class Where(StrEnum):
    """Where the hot experts of different kinds of text are."""

    MEASURED = "measured"
    """As recorded: kinds share most of their hot experts."""
    APART = "apart"
    """As uneven as recorded, but each kind has hot experts of its own: what moves between kinds is all of the heat."""


@dataclass(frozen=True, slots=True)
class Requests:
    """All requests of a run, by arrival."""

    at_s: Reals
    tokens: npt.NDArray[np.int64]
    kind: npt.NDArray[np.int64]


def recorded(path: Path = DATA) -> dict[str, Reals]:
    """Shares of each layer's tokens by expert, (layers, experts), by kind of text. Raises `ValueError` for no recording."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        counts = {name: np.array(of_kind, np.float64) for name, of_kind in told["tokens"].items()}
        return {name: one / one.sum(axis=1, keepdims=True) for name, one in counts.items()}
    except (OSError, ValueError, LookupError) as error:
        raise ValueError(f"{path} is no recording of experts: {error}") from None


def spread_over(shares: dict[str, Reals], shape: ExpertShape, where: Where, seed: int) -> dict[str, Reals]:
    """Shares (layers, experts) for a larger model, by kind.

    A multiplicative cascade (Mandelbrot, J. Fluid Mech. 62, 1974): an expert's number is written in digits to the base of the
    recorded number of experts, each digit stands for a recorded layer drawn at random, the same for all kinds, and the
    share is the product of what these layers recorded. Then the experts of a layer are shuffled, together for all kinds, or
    kind by kind if their heat is to be apart. Raises `ValueError` if the number of experts is no power of the recorded one.
    """
    source = np.random.default_rng(seed)
    layers, base = next(iter(shares.values())).shape
    digits = round(np.log(shape.experts) / np.log(base))
    if base**digits != shape.experts or digits > layers:
        raise ValueError(f"{shape.experts} experts are no power of the {base} that were recorded")
    found = {name: np.ones((shape.layers, shape.experts)) for name in shares}
    for layer in range(shape.layers):
        drawn = source.choice(layers, digits, replace=False)
        order = source.permutation(shape.experts)
        for name, of_kind in shares.items():
            product = np.ones(1)
            for one in drawn:
                product = np.outer(product, of_kind[one]).ravel()
            if where is Where.APART:
                order = source.permutation(shape.experts)
            found[name][layer] = product[order]
    return found


def requests(scene: Scene, kinds: list[str], per_s: float, seed: int) -> Requests:
    """Poisson arrivals at `per_s` requests a second over all phases."""
    source = np.random.default_rng(seed)
    count = int(source.poisson(per_s * scene.seconds))
    at_s = np.sort(source.uniform(0, scene.seconds, count))
    mean = np.log(scene.tokens) - scene.spread**2 / 2
    tokens = np.maximum(1, source.lognormal(mean, scene.spread, count).round()).astype(np.int64)
    kind = source.integers(0, len(kinds), count)
    began = 0.0
    for phase in scene.phases:
        if phase.kind is not None:
            inside = (at_s >= began) & (at_s < began + phase.seconds)
            # The others are of any kind but this one.
            others = np.array([number for number, name in enumerate(kinds) if name != phase.kind])
            mixed = others[source.integers(0, len(others), count)]
            mostly = np.where(source.random(count) < scene.concentration, kinds.index(phase.kind), mixed)
            kind = np.where(inside, mostly, kind)
        began += phase.seconds
    return Requests(at_s, tokens, kind)


def routed(tokens: npt.NDArray[np.int64], shares: Reals, top_k: int, source: np.random.Generator) -> Counts:
    """Rows (layers, experts) of so many tokens by kind, (kinds,): each token has `top_k` in every layer.

    Rows are drawn one by one, so a token may be given the same expert twice; `shares` is (kinds, layers, experts).
    """
    found = np.zeros(shares.shape[1:], np.int64)
    for number, count in enumerate(tokens.tolist()):
        if count:
            found += source.multinomial(count * top_k, shares[number])
    return found
