"""What pools did, by row, by request and in words that JSON has."""

from __future__ import annotations

import json
import time
from pathlib import Path

from cluster.experts.pool_use import PoolPart, PoolUse
from cluster.experts.pools import split_evenly
from deployments.experts.step_use import StepUse
from deployments.experts.uses import Uses, use_from
from tests.unit.experts.clients import a_batch, answer, client_of
from tests.unit.experts.pool_processes import EXPERTS, LAYERS, TOP_K, map_of, serving, write_experts


def a_step(rows: int = 6) -> StepUse:
    step = StepUse(rows)
    step.begun_s, step.ended_s, step.wait_s = 10.0, 10.5, 0.25
    return step


def test_rows_become_requests() -> None:
    uses, step = Uses(), a_step()
    step.counts("hot", "h0")[:] = [1, 2, 3, 4, 5, 6]
    step.counts("hot", "h1")[4:] = 1
    step.counts("cold", "c0")[0] = 7
    step.degraded.update({0: 2, 5: 1})
    step.resent.update({1: 4})
    uses.note(step, ["a-1", "none", "b-2"], [0, 2, 2, 6])
    assert uses.take("none".__eq__) is None
    told = json.loads(json.dumps(uses.take(lambda known: known.startswith("a-"))))
    assert use_from(told) == PoolUse(
        10.0, 10.5, 1, 0.25, (PoolPart("cold", 7, ("c0",)), PoolPart("hot", 3, ("h0",))), 4, 2
    )
    later = a_step(1)
    later.begun_s, later.ended_s = 11.0, 11.5
    later.counts("hot", "h1")[0] = 5
    uses.note(later, ["b-2"], [0, 1])
    assert use_from(uses.take("b-2".__eq__) or {}) == PoolUse(
        10.0, 11.5, 2, 0.5, (PoolPart("hot", 25, ("h0", "h1")),), 0, 1
    )
    assert uses.take("b-2".__eq__) is None, "it is asked once"


def test_requests_that_nobody_asks_for_are_forgotten() -> None:
    uses = Uses(limit=2)
    for name in "abc":
        step = a_step(1)
        step.counts("p", "r")[0] = 1
        uses.note(step, [name], [0, 1])
    assert [uses.take(name.__eq__) is None for name in "abc"] == [True, False, False]


def test_a_step_has_room_for_many_replicas_and_names_eight() -> None:
    uses, step = Uses(), a_step(1)
    for number in range(20):
        step.counts("p", f"r{number:02}")[0] = 1
    uses.note(step, ["a"], [0, 1])
    (part,) = use_from(uses.take("a".__eq__) or {}).parts
    assert part.pairs == 20 and part.replicas == tuple(f"r{number:02}" for number in range(8))


def test_a_client_counts_what_it_sent(tmp_path: Path) -> None:
    write_experts(tmp_path / "model")
    even, odd = split_evenly(range(LAYERS), EXPERTS, 2)
    with (
        serving(tmp_path / "model", even, f"unix:{tmp_path}/a") as a,
        serving(tmp_path / "model", odd, f"unix:{tmp_path}/b") as b,
    ):
        client = client_of(map_of((even, [a]), (odd, [b])), tmp_path / "model")
        before, uses, batch = time.time(), Uses(), a_batch(6)
        for layer in range(LAYERS):
            answer(client, layer, batch)
        step = client.take_step()
        assert step is not None and client.take_step() is None
        uses.note(step, ["first", "second"], [0, 4, 6])
        first, second = (use_from(uses.take(name.__eq__) or {}) for name in ("first", "second"))
        client.close()
    ids = batch[2]
    for use, mine in ((first, ids[:4]), (second, ids[4:])):
        pairs = {part.pool: part.pairs for part in use.parts}
        evens = int((mine % 2 == 0).sum()) * LAYERS
        wanted = {"pool0": evens, "pool1": mine.numel() * LAYERS - evens}
        assert pairs == {pool: count for pool, count in wanted.items() if count}
    assert mine.shape[1] == TOP_K and first.steps == 1
    assert before <= first.begun_s <= first.ended_s <= time.time() and 0 < first.wait_s < 5
