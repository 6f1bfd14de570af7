"""The replication of expert pools keeps its promises, whatever the load does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.experts.placement import Placement, Reals, Slots, balanced, copies_of, rearrange, round_robin
from cluster.experts.replication import Decision, Limits, Memory, PoolMemory, PoolState, Snapshot, decide

LAYERS: Final = 2
EXPERTS: Final = 8
PAIR_BYTES: Final = 10
CAPACITY: Final = 100.0

RATES = st.lists(
    st.sampled_from([0.0, 0.0, 1.0, 5.0, 20.0, 80.0, 300.0]) | st.floats(0, 500),
    min_size=LAYERS * EXPERTS,
    max_size=LAYERS * EXPERTS,
).map(lambda rates: np.array(rates).reshape(LAYERS, EXPERTS))
LIMITS = st.builds(
    Limits,
    memory_bytes=st.integers(4, 20).map(lambda replicas: replicas * LAYERS * 2 * PAIR_BYTES),
    loads=st.sampled_from([0, 3, 4, 9, 16, 1000]),
    interval_s=st.sampled_from([1.0, 10.0]),
    dwell_s=st.sampled_from([0.0, 5.0, 30.0]),
    max_replicas=st.integers(1, 6),
    idle_s=st.sampled_from([None, 1.0, 20.0]),
)


@dataclass(frozen=True)
class Moment:
    passes_s: float
    per_s: Reals
    settles: bool
    """Whether replicas that were told to stop are gone by the next moment."""


MOMENTS = st.builds(
    Moment, passes_s=st.sampled_from([0.0, 1.0, 2.0, 5.0, 30.0, 61.0]), per_s=RATES, settles=st.booleans()
)
DAYS = st.lists(MOMENTS, max_size=25)


def packed(weights: Reals, slots: int, pools: int) -> Slots:
    """Copies of the heaviest experts in what slots are left, then one pool after the other."""
    found = []
    for layer in weights:
        copies = np.ones(EXPERTS)
        chosen = list(range(EXPERTS))
        while len(chosen) < slots * pools:
            # No more copies than pools.
            expert = int(np.argmax(np.where(copies < pools, layer / copies, -1)))
            copies[expert] += 1
            chosen.append(expert)
        bundles = np.array(sorted(chosen, key=lambda expert: (-layer[expert] / copies[expert], expert)))
        found.append(bundles.reshape(slots, pools).T.ravel())
    return np.array(found)


class World:
    """Pools that do as they are told."""

    def __init__(self, limits: Limits, redundant: bool) -> None:
        self.limits, self.now_s, self.memory = limits, 0.0, Memory()
        self.placement: Placement = round_robin(LAYERS, EXPERTS, 4)
        if redundant:
            self.placement |= np.roll(self.placement, 1, axis=0)
        each = int(self.placement[0].sum()) * PAIR_BYTES
        self.limits = replace(limits, memory_bytes=max(limits.memory_bytes, 4 * each))
        self.replicas, self.held, self.last = [1] * 4, [1] * 4, [0.0] * 4

    def pools(self, per_s: Reals) -> tuple[PoolState, ...]:
        found = []
        for number in range(4):
            busy = bool((self.placement[number] & (per_s > 0)).any())
            self.last[number] = self.now_s if busy else self.last[number]
            waits = busy and self.replicas[number] == 0
            found.append(
                PoolState(
                    f"pool-{number}",
                    self.replicas[number],
                    self.held[number],
                    CAPACITY,
                    PAIR_BYTES,
                    waiting=int(waits),
                    last_token_s=self.last[number],
                )
            )
        return tuple(found)

    def live(self, moment: Moment) -> tuple[Snapshot, Decision]:
        self.now_s += moment.passes_s
        snapshot = Snapshot(moment.per_s, self.placement, self.pools(moment.per_s), self.limits, self.memory)
        decision = decide(snapshot, self.now_s, packed)
        for change in decision.changes:
            self.replicas[int(change.pool[-1])] = change.after
        gone = self.replicas if moment.settles else [0] * 4
        self.held = [
            max(wanted, was) if not moment.settles else left
            for wanted, was, left in zip(self.replicas, self.held, gone, strict=True)
        ]
        if decision.rearrangement is not None:
            self.placement = decision.rearrangement.placement
        self.memory = decision.memory
        return snapshot, decision


@given(LIMITS, st.booleans(), DAYS)
@settings(max_examples=150, deadline=None)
def test_memory_stays_within_its_budget_and_loads_within_theirs(
    limits: Limits, redundant: bool, day: list[Moment]
) -> None:
    world = World(limits, redundant)
    loaded: list[tuple[float, int]] = []
    for moment in day:
        snapshot, decision = world.live(moment)
        pairs = snapshot.placement.sum(axis=(1, 2))
        used = sum(int(pairs[at]) * PAIR_BYTES * held for at, held in enumerate(world.held))
        assert used <= world.limits.memory_bytes
        started = sum(
            int(pairs[int(change.pool[-1])]) * max(0, change.after - change.before) for change in decision.changes
        )
        moved = 0 if decision.rearrangement is None else decision.rearrangement.loads
        loaded.append((world.now_s, started + moved))
        within = [count for at_s, count in loaded if world.now_s - at_s < limits.interval_s]
        assert sum(within) <= limits.loads


@given(LIMITS, st.booleans(), DAYS)
@settings(max_examples=150, deadline=None)
def test_nothing_flaps_and_what_is_in_use_is_not_parked(limits: Limits, redundant: bool, day: list[Moment]) -> None:
    world = World(limits, redundant)
    changed: dict[str, tuple[float, bool]] = {}
    moved: dict[tuple[int, int], float] = {}
    for moment in day:
        snapshot, decision = world.live(moment)
        states = {pool.name: pool for pool in snapshot.pools}
        for change in decision.changes:
            up, state = change.after > change.before, states[change.pool]
            before = changed.get(change.pool)
            if before is not None and before[1] != up and change.cause != "invoked":
                assert world.now_s - before[0] >= limits.dwell_s
            if change.after == 0:
                assert limits.idle_s is not None and state.waiting == 0
                assert world.now_s - state.last_token_s >= limits.idle_s
            assert change.cause != "invoked" or change.before == 0
            assert change.before != change.after <= limits.max_replicas
            changed[change.pool] = world.now_s, up
        steps = () if decision.rearrangement is None else decision.rearrangement.moves
        touched = {(move.layer, expert) for move in steps for expert in (move.expert, move.instead_of)}
        for pair in touched:
            assert world.now_s - moved.get(pair, -np.inf) >= limits.dwell_s
            moved[pair] = world.now_s


@given(LIMITS, DAYS, RATES, st.integers(0, 3), st.floats(1, 20), st.floats(0, 200))
@settings(max_examples=200, deadline=None)
def test_more_heat_for_a_pool_never_means_fewer_replicas_for_it(
    limits: Limits, day: list[Moment], per_s: Reals, number: int, times: float, more: float
) -> None:
    world = World(limits, redundant=False)
    for moment in day:
        world.live(moment)
    hotter = per_s.copy()
    mine = world.placement[number]
    hotter[mine] = hotter[mine] * times + more
    world.now_s += 7.0

    def after(rates: Reals) -> int:
        snapshot = Snapshot(rates, world.placement, world.pools(rates), world.limits, world.memory)
        found = {change.pool: change.after for change in decide(snapshot, world.now_s).changes}
        return found.get(f"pool-{number}", world.replicas[number])

    cooler = after(per_s)
    assert after(hotter) >= cooler


@given(LIMITS, RATES, st.lists(st.integers(1, 5), min_size=4, max_size=4), st.permutations(range(4)))
@settings(max_examples=100, deadline=None)
def test_a_decision_is_repeatable_and_does_not_depend_on_the_order_of_pools(
    limits: Limits, per_s: Reals, replicas: list[int], order: list[int]
) -> None:
    placement = round_robin(LAYERS, EXPERTS, 4)
    memory = Memory({f"pool-{number}": PoolMemory(cold_since_s=0.0) for number in range(4)})
    pools = tuple(PoolState(f"pool-{at}", count, count, CAPACITY, PAIR_BYTES) for at, count in enumerate(replicas))
    snapshot = Snapshot(per_s, placement, pools, limits, memory)
    first = decide(snapshot, 100.0)
    assert decide(snapshot, 100.0) == first
    shuffled = Snapshot(per_s, placement[order], tuple(pools[at] for at in order), limits, memory)
    again = decide(shuffled, 100.0)
    assert {change.pool: change.after for change in again.changes} == {one.pool: one.after for one in first.changes}


@given(LIMITS, RATES, st.permutations(range(4)))
@settings(max_examples=100, deadline=None)
def test_the_hottest_of_equal_pools_comes_first(limits: Limits, per_s: Reals, order: list[int]) -> None:
    rates = per_s.copy()
    world = World(limits, redundant=False)
    for rank, number in enumerate(order):
        rates[world.placement[number]] = 40.0 + 40.0 * rank
    _, decision = world.live(Moment(1.0, rates, settles=True))
    granted = {change.pool: change.after for change in decision.changes}
    usage = [(40.0 + 40.0 * rank) * 4 / granted.get(f"pool-{number}", 1) for rank, number in enumerate(order)]
    refused = {one.pool for one in decision.blocked}
    # Whoever was refused was at most as hot as those that got their last replica.
    for rank, number in enumerate(order):
        name = f"pool-{number}"
        for other, hotter in enumerate(order):
            got = granted.get(f"pool-{hotter}", 1)
            if name in refused and got > 1:
                assert usage[rank] <= (40.0 + 40.0 * other) * 4 / (got - 1) + 1e-9


@given(
    RATES,
    RATES,
    st.integers(0, 30),
    st.booleans(),
    st.lists(st.integers(0, 3), min_size=4, max_size=4).filter(any),
)
@settings(max_examples=200, deadline=None)
def test_a_rearrangement_keeps_every_pair_reachable_step_by_step(
    before: Reals, now: Reals, budget: int, redundant: bool, replicas: list[int]
) -> None:
    current = balanced(before + 0.1, 3 if redundant else 2, 4, packed)
    target = balanced(now + 0.1, 3 if redundant else 2, 4, packed)
    numbers = np.array(replicas, float)
    found = rearrange(current, target, now, numbers, budget)
    assert found.loads <= budget
    assert 0 <= found.gain <= 1
    reachable = copies_of(current, numbers) > 0
    step = current.copy()
    for at, move in enumerate(found.moves):
        assert numbers[move.pool] == move.loads > 0
        assert not step[move.pool, move.layer, move.expert] and step[move.pool, move.layer, move.instead_of]
        step[move.pool, move.layer, move.expert] = True
        step[move.pool, move.layer, move.instead_of] = False
        exchanged = at + 1 < len(found.moves) and found.moves[at + 1].expert == move.instead_of
        if not exchanged:
            assert (copies_of(step, numbers) > 0)[reachable].all()
    assert (step == found.placement).all()
    assert (step.sum(axis=2) == current.sum(axis=2)).all()
