from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from deployments.engines.simulated.core import Bounds, Costs, Scheduler
from deployments.engines.simulated.sequence import Sequence

COSTS = Costs(prefill_tokens_per_s=1000.0, decode_step_base_s=0.02, decode_step_per_seq_s=0.001)


def scheduler(blocks: int = 8, size: int = 4, seqs: int = 4, batched: int = 16, caching: bool = True) -> Scheduler:
    return Scheduler(Bounds(blocks, size, seqs, batched, caching), COSTS)


@dataclass
class Played:
    """What a scheduler did until it had no more work."""

    tokens: dict[str, list[int]] = field(default_factory=dict)
    order: list[tuple[str, int]] = field(default_factory=list)
    seconds: float = 0.0
    steps: int = 0


def play(engine: Scheduler) -> Played:
    played = Played()
    while (step := engine.begin()) is not None:
        played.steps += 1
        assert played.steps < 100_000
        assert engine.faults() == []
        played.seconds += step.duration_s
        for made in engine.finish(step):
            tokens = played.tokens.setdefault(made.key, [])
            assert made.index == len(tokens)
            tokens.append(made.token)
            played.order.append((made.key, made.index))
        assert engine.faults() == []
    return played


REQUESTS = st.lists(
    st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(1, 12)), min_size=1, max_size=12
)
BOUNDS = st.builds(
    Bounds,
    kv_blocks=st.integers(8, 12),
    kv_block_tokens=st.integers(4, 6),
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.integers(1, 24),
    prefix_caching=st.booleans(),
)


@given(REQUESTS, BOUNDS)
def test_every_request_finishes_with_all_tokens_whatever_was_preempted(
    requests: list[tuple[list[int], int]], bounds: Bounds
) -> None:
    engine = Scheduler(bounds, COSTS)
    for number, (prompt, limit) in enumerate(requests):
        engine.add(Sequence(str(number), prompt, limit, seed=7))
    together = play(engine).tokens
    assert {key: len(tokens) for key, tokens in together.items()} == {
        str(number): limit for number, (_, limit) in enumerate(requests)
    }
    assert engine.pool.in_use == 0
    # Alone, nothing is preempted or shared: the same tokens come out.
    for number, (prompt, limit) in enumerate(requests):
        alone = Scheduler(bounds, COSTS)
        alone.add(Sequence(str(number), prompt, limit, seed=7))
        assert play(alone).tokens[str(number)] == together[str(number)]


@given(REQUESTS, BOUNDS)
def test_order_and_time_repeat(requests: list[tuple[list[int], int]], bounds: Bounds) -> None:
    runs = []
    for _ in range(2):
        engine = Scheduler(bounds, COSTS)
        for number, (prompt, limit) in enumerate(requests):
            engine.add(Sequence(str(number), prompt, limit, seed=7))
        played = play(engine)
        runs.append((played.order, played.seconds, engine.counters))
    assert runs[0] == runs[1]


class Lifecycle(RuleBasedStateMachine):
    """Sequences come and go at any moment, also between the start and the end of a step."""

    here = Bundle("here")

    def __init__(self) -> None:
        super().__init__()
        self.engine = scheduler()
        self.serial = 0
        self.expected: dict[str, int] = {}
        self.seen: dict[str, int] = {}

    @rule(target=here, prompt=st.lists(st.integers(0, 2), min_size=1, max_size=18), limit=st.integers(1, 10))
    def add(self, prompt: list[int], limit: int) -> str:
        self.serial += 1
        key = str(self.serial)
        self.engine.add(Sequence(key, prompt, limit, seed=1))
        self.expected[key] = limit
        self.seen[key] = 0
        return key

    @rule(key=consumes(here))
    def cancel(self, key: str) -> None:
        held = self.engine.pool.in_use
        if self.engine.cancel(key):
            del self.expected[key]
        assert self.engine.pool.in_use <= held
        assert not self.engine.cancel(key)

    @rule(key=st.none() | here)
    def step(self, key: str | None) -> None:
        step = self.engine.begin()
        if step is None:
            assert self.engine.running == self.engine.waiting == 0
            return
        if key is not None and self.engine.cancel(key):
            del self.expected[key]
        for made in self.engine.finish(step):
            assert made.key != key
            assert made.index == self.seen[made.key]
            self.seen[made.key] += 1
            assert made.finished == (self.seen[made.key] == self.expected[made.key])
            if made.finished:
                del self.expected[made.key]

    @invariant()
    def books_are_right(self) -> None:
        assert self.engine.faults() == []
        assert self.engine.pool.in_use <= self.engine.pool.total

    def teardown(self) -> None:
        while self.expected:
            self.step(None)
        assert self.engine.pool.in_use == 0


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_step_costs_base_sequences_and_prompt_tokens() -> None:
    engine = scheduler(blocks=64)
    engine.add(Sequence("a", [1] * 10, 3, seed=0))
    first = engine.begin()
    assert first is not None
    assert first.duration_s == pytest.approx(0.02 + 10 / 1000)
    engine.finish(first)
    second = engine.begin()
    assert second is not None
    assert second.duration_s == pytest.approx(0.021)


def test_long_prompts_are_prefilled_in_chunks_beside_decoding() -> None:
    engine = scheduler(blocks=64, batched=16)
    engine.add(Sequence("a", [1], 10, seed=0))
    engine.finish(engine.begin())  # type: ignore[arg-type]
    engine.add(Sequence("b", [2] * 40, 2, seed=0))
    sizes = []
    for _ in range(3):
        step = engine.begin()
        assert step is not None
        sizes.append({sequence.key: tokens for sequence, tokens in step.work})
        engine.finish(step)
    assert sizes == [{"a": 1, "b": 15}, {"a": 1, "b": 15}, {"a": 1, "b": 10}]


def test_a_known_prefix_is_not_computed_again() -> None:
    engine = scheduler(blocks=64, size=4)
    prompt = list(range(100, 112))
    for key in ("a", "b"):
        engine.add(Sequence(key, prompt, 1, seed=0))
        play(engine)
    # The third block ends in the last token, which is always computed.
    assert engine.counters.prefix_hits == 8
    assert engine.counters.prefix_queries == 24
    assert engine.counters.prompt_tokens == 12 + 4


def test_what_was_generated_is_found_by_the_next_turn() -> None:
    engine = scheduler(blocks=64, size=4)
    engine.add(Sequence("a", [100] * 4, 9, seed=0))
    made = play(engine).tokens["a"]
    engine.add(Sequence("b", [100] * 4 + made + [101], 1, seed=0))
    play(engine)
    assert engine.counters.prefix_hits == 12


def test_a_sequence_goes_on_as_another_one_did() -> None:
    whole = scheduler(blocks=64)
    whole.add(Sequence("a", [5, 6], 10, seed=3))
    tokens = play(whole).tokens["a"]
    rest = scheduler(blocks=64)
    rest.add(Sequence("b", [5, 6, *tokens[:4]], 6, seed=3))
    assert play(rest).tokens["b"] == tokens[4:]


def test_pressure_preempts_and_costs_time() -> None:
    def run(blocks: int) -> tuple[float, int]:
        engine = scheduler(blocks=blocks, size=4, seqs=4, batched=64, caching=False)
        for number in range(4):
            engine.add(Sequence(str(number), [number] * 8, 20, seed=0))
        return play(engine).seconds, engine.counters.preemptions

    roomy, tight = run(64), run(12)
    assert roomy[1] == 0
    assert tight[1] > 0
    assert tight[0] > roomy[0]


def test_what_can_never_finish_is_refused() -> None:
    engine = scheduler(blocks=2, size=4)
    engine.add(Sequence("fits", [1] * 5, 4, seed=0))
    with pytest.raises(ValueError, match="larger"):
        engine.add(Sequence("too large", [1] * 5, 5, seed=0))
    with pytest.raises(ValueError, match="already"):
        engine.add(Sequence("fits", [1], 1, seed=0))
    with pytest.raises(ValueError, match="prompt"):
        Sequence("empty", [], 1, seed=0)
