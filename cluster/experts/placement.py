"""Which experts live together: placements of pairs of layer and expert in pools, and how to go from one to a better one.

A placement is a boolean array (pools, layers, experts): which pool holds which pair. A pair may be in several pools. All
replicas of a pool hold the same, and the tokens of a pair spread evenly over all replicas that hold it. Pure functions.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Reals = npt.NDArray[np.float64]
Placement = npt.NDArray[np.bool_]
"""(pools, layers, experts)."""
Numbers = npt.NDArray[np.int64]
Slots = Numbers
"""(layers, pools * slots of a pool): the expert in each slot, pool by pool."""
Balance = Callable[[Reals, int, int], Slots]
"""A balancing algorithm: from weights (layers, experts), slots of each pool in each layer, and pools, to slots."""

Wish = tuple[int, int, int, int]
"""Pool, layer, expert that it is to get, expert that it is to give up for it."""

_WORTH: Final = 5e-6
"""Part of the whole potential that a move takes off at least: less is not worth the weights that it loads."""


class PlacementError(ValueError):
    """Experts that cannot be placed so."""


@dataclass(frozen=True, slots=True)
class Move:
    """One pool gets a pair, and gives up another one of the same layer for it."""

    pool: int
    layer: int
    expert: int
    instead_of: int
    """The expert that it held there."""
    loads: int
    """Copies of weights that this loads: one for each replica of the pool."""


@dataclass(frozen=True, slots=True)
class Rearrangement:
    """A placement that was changed in part."""

    placement: Placement
    moves: tuple[Move, ...]
    """In the order in which they are to be made: each leaves every pair in a pool, an exchange of two being two in a row."""
    left: int
    """Pairs that the target has in other pools still: out of budget, or not worth it as yet."""
    gain: float
    """Part of the imbalance (see `potential`) that goes away, 0 to 1."""

    @property
    def loads(self) -> int:
        """Copies of weights that are loaded."""
        return sum(move.loads for move in self.moves)


def round_robin(layers: int, experts: int, pools: int) -> Placement:
    """The static placement: each expert in one pool, in turn. Raises `PlacementError`."""
    if not 1 <= pools <= experts:
        raise PlacementError(f"{experts} experts cannot be shared out among {pools} pools")
    placement = np.zeros((pools, layers, experts), np.bool_)
    numbers = np.arange(experts)
    placement[numbers % pools, :, numbers] = True
    return placement


def balanced(weights: Reals, slots: int, pools: int, balance: Balance) -> Placement:
    """What a balancing algorithm makes of weights (layers, experts). Raises `PlacementError` if it forgets an expert.

    Where it puts an expert in a pool twice, that slot goes to the heaviest expert, by its copy, that the pool lacks.
    """
    layers, experts = weights.shape
    if slots * pools < experts or slots > experts:
        raise PlacementError(f"{pools} pools with {slots} slots in a layer cannot hold {experts} experts")
    expert = balance(weights, slots, pools)
    if expert.shape != (layers, slots * pools):
        raise PlacementError(f"the balancing algorithm gave slots of the shape {expert.shape}")
    placement = np.zeros((pools, layers, experts), np.bool_)
    pool = np.repeat(np.arange(pools), slots)
    placement[pool[None, :], np.arange(layers)[:, None], expert] = True
    if not placement.any(axis=0).all():
        raise PlacementError("the balancing algorithm left an expert without a place")
    for number, layer in np.argwhere(placement.sum(axis=2) < slots):
        lacking = slots - int(placement[number, layer].sum())
        by_copy = weights[layer] / placement[:, layer].sum(axis=0)
        by_copy[placement[number, layer]] = -1
        placement[number, layer, np.argsort(-by_copy, kind="stable")[:lacking]] = True
    return placement


def copies_of(placement: Placement, replicas: Reals) -> Reals:
    """Replicas that hold each pair, (layers, experts); `replicas` is by pool, (pools,)."""
    return np.asarray(np.tensordot(replicas, placement, axes=1), np.float64)


def replica_loads(placement: Placement, weights: Reals, replicas: Reals) -> Reals:
    """What one replica of each pool gets in each layer, (pools, layers), in the unit of `weights` (layers, experts).

    A pair whose pools have no replica counts as if each had one: that is what they would get.
    """
    copies = copies_of(placement, replicas)
    held = np.where(copies > 0, copies, placement.sum(axis=0))
    per_copy = np.divide(weights, held, out=np.zeros(weights.shape), where=held > 0)
    return np.asarray(np.einsum("ple,le->pl", placement, per_copy))


def potential(loads: Reals, replicas: Reals) -> float:
    """Sum of the squared loads (pools, layers) of all replicas: the smaller, the more evenly the same tokens are spread."""
    return float((replicas[:, None] * loads**2).sum())


def aligned(current: Placement, target: Placement) -> Placement:
    """The target with its pools renamed, layer by layer, so that as many pairs as possible stay where they are.

    To a balancing algorithm all pools are alike, so which one gets which bundle is free. Greedy: the largest overlap first.
    """
    found = np.zeros_like(target)
    pools = current.shape[0]
    for layer in range(current.shape[1]):
        overlap = current[:, layer].astype(np.float32) @ target[:, layer].astype(np.float32).T
        rows, columns = np.nonzero(overlap)
        order = np.argsort(-overlap[rows, columns], kind="stable")
        bundle_of = np.full(pools, -1)
        taken = np.zeros(pools, np.bool_)
        for pool, bundle in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
            if bundle_of[pool] < 0 and not taken[bundle]:
                bundle_of[pool], taken[bundle] = bundle, True
        bundle_of[bundle_of < 0] = np.flatnonzero(~taken)
        found[:, layer] = target[bundle_of, layer]
    return found


def rearrange(
    current: Placement,
    target: Placement,
    weights: Reals,
    replicas: Reals,
    budget: int,
    resting: Collection[tuple[int, int]] = (),
) -> Rearrangement:
    """Go from `current` towards `target`, the moves with the largest gain first, loading at most `budget` copies of weights.

    Both hold the same number of pairs in each pool and layer. A gain is what a move takes off `potential`; a move that
    gains next to nothing is not made. Pairs (layer, expert) that are `resting` stay as they are. Every pair stays in a pool throughout.
    """
    return _Rearranging(current.copy(), aligned(current, target), weights, replicas, frozenset(resting)).run(budget)


class _Rearranging:
    """A placement while it changes."""

    def __init__(
        self, held: Placement, target: Placement, weights: Reals, replicas: Reals, resting: frozenset[tuple[int, int]]
    ) -> None:
        self._held, self._target, self._weights, self._resting = held, target, weights, resting
        # A pool that is parked loads nothing now, and gets nothing.
        self._replicas = replicas
        self._loads = replica_loads(held, weights, replicas)
        self._copies = copies_of(held, replicas)
        self._before = potential(self._loads, replicas)

    def run(self, budget: int) -> Rearrangement:
        moves: list[Move] = []
        waiting = self._wished()
        spent, progress = 0, True
        while progress and waiting:
            # What one move makes room for, the next round can make.
            made, waiting = self._round(waiting, budget - spent)
            spent += sum(move.loads for move in made)
            moves += made
            progress = bool(made)
        gain = 1 - potential(self._loads, self._replicas) / self._before if self._before > 0 else 0.0
        left = (self._target & ~self._held)[self._replicas > 0].sum()
        return Rearrangement(self._held, tuple(moves), int(left), max(0.0, gain))

    def _wished(self) -> list[Wish]:
        """In each pool and layer the hottest that it lacks for the coldest that it has too many."""
        per_copy = np.divide(self._weights, self._copies, out=np.zeros(self._weights.shape), where=self._copies > 0)
        found = []
        differs = (self._held != self._target).any(axis=2) & (self._replicas > 0)[:, None]
        for pool, layer in np.argwhere(differs).tolist():
            here, there = self._held[pool, layer], self._target[pool, layer]
            coming, going = np.flatnonzero(there & ~here), np.flatnonzero(here & ~there)
            coming = coming[np.argsort(-per_copy[layer, coming], kind="stable")]
            going = going[np.argsort(per_copy[layer, going], kind="stable")]
            found += [
                (pool, layer, expert, other) for expert, other in zip(coming.tolist(), going.tolist(), strict=True)
            ]
        return found

    def _round(self, wished: list[Wish], budget: int) -> tuple[list[Move], list[Wish]]:
        """Moves that were made, and wishes that were not."""
        heap = list(zip((-self._most(wished)).tolist(), wished, strict=True))
        heapq.heapify(heap)
        made: list[Move] = []
        left: list[Wish] = []
        least = self._replicas[self._replicas > 0].min(initial=np.inf)
        while heap and budget >= least and heap[0][0] < -_WORTH * self._before:
            _, wish = heapq.heappop(heap)
            step = self._step(*wish)
            if step is None:
                left.append(wish)
                continue
            gain = self._gain(step)
            if heap and -gain > heap[0][0]:
                # It was valued by its bound, or other moves have changed its gain since: another one's is larger.
                heapq.heappush(heap, (-gain, wish))
            elif gain > _WORTH * self._before and sum(move.loads for move in step) <= budget:
                self._apply(step)
                made += step
                budget -= sum(move.loads for move in step)
            else:
                left.append(wish)
        return made, left + [wish for _, wish in heap]

    def _most(self, wished: list[Wish]) -> Reals:
        """What each wish gains at most, (wishes,): to the first order, as the potential is convex; infinite for exchanges."""
        pool, layer, expert, other = np.array(wished, np.int64).reshape(-1, 4).T
        replicas, weights, copies = self._replicas[pool], self._weights, self._copies
        with np.errstate(divide="ignore", invalid="ignore"):
            had, has = weights[layer, expert] / copies[layer, expert], weights[layer, other] / copies[layer, other]
            gets = weights[layer, expert] / (copies[layer, expert] + replicas)
            leaves = weights[layer, other] / (copies[layer, other] - replicas)
            slope = 2 * np.einsum("pl,ple->le", self._replicas[:, None] * self._loads, self._held)
            own = 2 * replicas * self._loads[pool, layer]
            most = slope[layer, expert] * (had - gets) + own * (has - gets)
            most -= (slope[layer, other] - own) * (leaves - has)
        alone = (copies[layer, other] <= replicas) | (copies[layer, expert] <= 0)
        return np.where(alone, self._most_exchanged(pool, layer, had - has), most)

    def _most_exchanged(self, pool: Numbers, layer: Numbers, hotter: Reals) -> Reals:
        """The same for exchanges with any partner, where all pools have as many replicas; else infinite."""
        alive = self._replicas > 0
        if not np.isfinite(hotter).all() or np.ptp(self._replicas[alive]) > 0:
            return np.full(len(pool), np.inf)
        own, loads = self._loads[pool, layer], self._loads[alive]
        above, below = loads.max(axis=0)[layer] - own, own - loads.min(axis=0)[layer]
        return np.asarray(2 * self._replicas[pool] * np.maximum(above * hotter, -below * hotter))

    def _step(self, pool: int, layer: int, expert: int, other: int) -> list[Move] | None:
        """The moves that fulfil a wish: one, or two if `other` is in no other pool; None: it cannot be done now."""
        held = self._held[:, layer]
        if held[pool, expert] or not held[pool, other] or {(layer, expert), (layer, other)} & self._resting:
            return None
        move = Move(pool, layer, expert, other, int(self._replicas[pool]))
        alive = self._replicas > 0
        if (held[:, other] & alive).sum() > 1:
            return [move]
        # The pool that is to give up `expert` takes `other` for it.
        partners = np.flatnonzero(held[:, expert] & ~self._target[:, layer, expert] & ~held[:, other] & alive)
        if not len(partners):
            return None
        partner = int(partners[np.argmax(self._target[partners, layer, other])])
        return [move, Move(partner, layer, other, expert, int(self._replicas[partner]))]

    def _gain(self, step: list[Move]) -> float:
        layer = step[0].layer
        before = self._loads[:, layer]
        return float((self._replicas * (before**2 - self._after(step) ** 2)).sum())

    def _after(self, step: list[Move]) -> Reals:
        """Loads (pools,) of the layer once the moves are made."""
        layer, loads = step[0].layer, self._loads[:, step[0].layer].copy()
        for expert in {move.expert for move in step} | {move.instead_of for move in step}:
            holds, copies = self._held[:, layer, expert], self._copies[layer, expert]
            then = holds.copy()
            for move in step:
                if move.expert == expert:
                    then[move.pool] = True
                elif move.instead_of == expert:
                    then[move.pool] = False
            weight = self._weights[layer, expert]
            loads -= holds * (weight / copies if copies > 0 else 0.0)
            loads += then * (weight / float(self._replicas[then].sum()))
        return loads

    def _apply(self, step: list[Move]) -> None:
        layer = step[0].layer
        self._loads[:, layer] = self._after(step)
        for move in step:
            self._held[move.pool, layer, move.expert] = True
            self._held[move.pool, layer, move.instead_of] = False
        for expert in {move.expert for move in step} | {move.instead_of for move in step}:
            self._copies[layer, expert] = self._replicas[self._held[:, layer, expert]].sum()
