"""The simulated scheduler's pool is made anew at any step: the same tokens come out, and no block is lost."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.engines.simulated.core import Bounds, Costs, Scheduler, Step
from deployments.engines.simulated.sequence import Sequence

COSTS = Costs(prefill_tokens_per_s=1000.0, decode_step_base_s=0.02, decode_step_per_seq_s=0.001)

REQUESTS = st.lists(
    st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(1, 12)), min_size=1, max_size=10
)
BOUNDS = st.builds(
    Bounds,
    kv_blocks=st.integers(8, 12),
    kv_block_tokens=st.integers(4, 6),
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.integers(1, 24),
    prefix_caching=st.booleans(),
)
CHANGES = st.dictionaries(st.integers(0, 40), st.tuples(st.booleans(), st.integers(1, 3)), max_size=6)
"""By the number of the step: whether it comes in the middle of it or before it, and how many times the blocks there are then."""


class Played:
    """What a scheduler made of requests until it had no more work, with changes on the way."""

    def __init__(
        self, requests: list[tuple[list[int], int]], bounds: Bounds, changes: Mapping[int, tuple[bool, int]]
    ) -> None:
        self.scheduler = Scheduler(bounds, COSTS)
        self.sequences = [Sequence(str(n), prompt, limit, seed=7) for n, (prompt, limit) in enumerate(requests)]
        self.tokens: dict[str, list[int]] = {sequence.key: [] for sequence in self.sequences}
        self.forced = 0
        self.told = 0
        """Tokens that were computed when the pool was made anew, as it said."""
        for sequence in self.sequences:
            self.scheduler.add(sequence)
        number = 0
        while True:
            in_step, times = changes.get(number, (None, 1))
            if in_step is False:
                self._change(bounds.kv_blocks * times)
            step = self.scheduler.begin()
            if step is None:
                break
            if in_step is True:
                self._change(bounds.kv_blocks * times)
            self._finish(step)
            number += 1
            assert number < 10_000

    def _change(self, blocks: int) -> None:
        ran = self.scheduler.running
        computed = sum(sequence.computed for sequence in self.sequences if not sequence.finished)
        preempted, tokens = self.scheduler.rebuild(blocks)
        assert (preempted, tokens) == (ran, computed)
        assert (self.scheduler.running, self.scheduler.pool.in_use, self.scheduler.pool.total) == (0, 0, blocks)
        assert self.scheduler.faults() == []
        self.forced += preempted
        self.told += tokens

    def _finish(self, step: Step) -> None:
        for made in self.scheduler.finish(step):
            tokens = self.tokens[made.key]
            assert made.index == len(tokens)
            tokens.append(made.token)
        assert self.scheduler.faults() == []


@settings(max_examples=300, deadline=None)
@given(REQUESTS, BOUNDS, CHANGES)
def test_the_same_tokens_come_out_whenever_the_pool_is_made_anew(
    requests: list[tuple[list[int], int]], bounds: Bounds, changes: dict[int, tuple[bool, int]]
) -> None:
    plain = Played(requests, bounds, {})
    changed = Played(requests, bounds, changes)
    assert changed.tokens == plain.tokens
    assert {key: len(tokens) for key, tokens in plain.tokens.items()} == {
        str(number): limit for number, (_, limit) in enumerate(requests)
    }
    assert changed.scheduler.pool.in_use == plain.scheduler.pool.in_use == 0
    assert changed.scheduler.running == changed.scheduler.waiting == 0
    counters = changed.scheduler.counters
    assert counters.generated_tokens == sum(limit for _, limit in requests)
    assert counters.forced_preemptions == changed.forced
    # Preemptions of both kinds, and what they cost, are those of the sequences.
    assert sum(one.preemptions for one in changed.sequences) == counters.preemptions + counters.forced_preemptions
    assert sum(one.recomputed for one in changed.sequences) == counters.recomputed_tokens
    if counters.preemptions == 0:
        assert counters.recomputed_tokens <= changed.told
        if not bounds.prefix_caching:
            assert counters.recomputed_tokens == changed.told
    assert plain.scheduler.counters.forced_preemptions == 0


@settings(max_examples=100, deadline=None)
@given(REQUESTS, BOUNDS, st.integers(0, 30), st.data())
def test_one_that_leaves_after_a_change_leaves_nothing_behind(
    requests: list[tuple[list[int], int]], bounds: Bounds, at: int, data: st.DataObject
) -> None:
    scheduler = Scheduler(bounds, COSTS)
    for number, (prompt, limit) in enumerate(requests):
        scheduler.add(Sequence(str(number), prompt, limit, seed=7))
    leaving = data.draw(st.sets(st.integers(0, len(requests) - 1)))
    number = 0
    while (step := scheduler.begin()) is not None:
        if number == at:
            scheduler.rebuild(bounds.kv_blocks * 2)
            for key in leaving:
                scheduler.cancel(str(key))
        assert not (number >= at and {made.key for made in scheduler.finish(step)} & set(map(str, leaving)))
        assert scheduler.faults() == []
        number += 1
    assert scheduler.pool.in_use == scheduler.running == scheduler.waiting == 0
