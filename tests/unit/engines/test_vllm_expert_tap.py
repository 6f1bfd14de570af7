"""The expert tap, with a runner and routers that are made up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cluster.experts.load import ExpertShape
from deployments.engines.vllm_expert_tap import LOG_ARGUMENT, MAX_LOGS, ExpertTap, TapOutput

SHAPE = ExpertShape(layers=2, experts=4, top_k=2)


class Router:
    """Hands the ids that it is given to whoever listens."""

    def __init__(self) -> None:
        self.capture: Any = None

    def set_capture_fn(self, capture: Any) -> None:
        self.capture = capture


class Runner:
    """A model runner whose layers choose what `choices` says: for each token (layers, top-k)."""

    def __init__(self) -> None:
        self.routers = [Router(), Router()]
        self.input_batch = SimpleNamespace(
            req_ids=[], num_computed_tokens_cpu=np.zeros(64, np.int32), token_ids_cpu=np.zeros((64, 64), np.int32)
        )
        self.choices: list[list[list[int]]] = []

    def execute_model(self, scheduler_output: Any) -> str:
        for layer, router in enumerate(self.routers):
            if router.capture is not None and self.choices:
                router.capture(torch.tensor([token[layer] for token in self.choices], dtype=torch.int32))
        return "output"


@pytest.fixture
def runner() -> Runner:
    return Runner()


@pytest.fixture
def tap(runner: Runner) -> ExpertTap:
    made = ExpertTap(runner, runner.routers, SHAPE)
    made.install()
    return made


def step(
    runner: Runner,
    scheduled: dict[str, int],
    choices: list[list[list[int]]],
    new: dict[str, int] | None = None,
    finished: tuple[str, ...] = (),
) -> None:
    """One step. `new`: requests that begin, with the tokens that they want logged."""
    runner.input_batch.req_ids = list(scheduled)
    runner.choices = choices
    begins = [
        SimpleNamespace(
            req_id=name, sampling_params=SimpleNamespace(extra_args={LOG_ARGUMENT: limit} if limit else None)
        )
        for name, limit in (new or {}).items()
    ]
    output = SimpleNamespace(
        finished_req_ids=set(finished),
        scheduled_new_reqs=begins,
        num_scheduled_tokens=scheduled,
        total_num_scheduled_tokens=sum(scheduled.values()),
    )
    assert runner.execute_model(output) == "output"
    for row, name in enumerate(scheduled):
        runner.input_batch.num_computed_tokens_cpu[row] += scheduled[name]


A, B = [[0, 1], [2, 3]], [[1, 0], [3, 1]]


def test_tokens_are_counted_by_layer_and_expert_and_by_request(runner: Runner, tap: ExpertTap) -> None:
    step(runner, {"x": 2, "y": 1}, [A, A, B])
    assert tap.total().tolist() == [[3, 3, 0, 0], [0, 1, 2, 3]]
    of_x, of_y = tap.used("x"), tap.used("y")
    assert of_x is not None and of_x.tolist() == [[2, 2, 0, 0], [0, 0, 2, 2]]
    assert of_y is not None and of_y.tolist() == [[1, 1, 0, 0], [0, 1, 0, 1]]
    assert tap.used("z") is None


def test_counts_of_an_ended_request_are_handed_over_once_and_forgotten(runner: Runner, tap: ExpertTap) -> None:
    step(runner, {"x": 1}, [A])
    hands = TapOutput(tap)
    assert hands.take_output(SimpleNamespace(request_id="x", is_finished=lambda: False), None) is None
    taken = hands.take_output(SimpleNamespace(request_id="x", is_finished=lambda: True), None)
    assert taken is not None and taken.shape == (1, 2, 4) and taken.sum() == 4
    step(runner, {"y": 1}, [B], finished=("x",))
    assert tap.used("x") is None
    # Its place was taken by the next request, without what stood there.
    of_y = tap.used("y")
    assert of_y is not None and of_y.sum() == 4


def test_places_grow_with_the_requests_at_once_and_no_further(runner: Runner, tap: ExpertTap) -> None:
    names = [f"r{number}" for number in range(40)]
    step(runner, dict.fromkeys(names, 1), [A] * 40)
    assert all(counts is not None and counts.sum() == 4 for counts in map(tap.used, names))
    for turn in range(20):
        step(runner, {f"later{turn}": 1}, [A], finished=(*names, *[f"later{before}" for before in range(turn)]))
    assert len(tap._used) == 64


def test_a_log_holds_each_token_once_in_the_order_of_the_text(runner: Runner, tap: ExpertTap) -> None:
    runner.input_batch.token_ids_cpu[0, :6] = [10, 11, 12, 13, 14, 15]
    step(runner, {"x": 2}, [A, B], new={"x": 5})
    # It is preempted: what it had is computed again, and one token more.
    runner.input_batch.num_computed_tokens_cpu[0] = 0
    step(runner, {"x": 3}, [A, B, A])
    step(runner, {"x": 1}, [B])
    step(runner, {"x": 2}, [A, A])
    step(runner, {}, [], finished=("x",))
    assert tap.logged() == ["x"]
    log = tap.take_log("x")
    assert log is not None
    assert (log.tokens, log.left_out) == ((10, 11, 12, 13, 14), 1)
    assert log.array(SHAPE).tolist() == [A, B, A, B, A]
    assert tap.take_log("x") is None


def test_a_log_is_kept_only_where_it_was_asked_for(runner: Runner, tap: ExpertTap) -> None:
    step(runner, {"x": 1, "y": 1}, [A, B], new={"x": 0, "y": 3})
    assert tap.logged() == ["y"]
    log = tap.take_log("y")
    assert log is not None and log.array(SHAPE).tolist() == [B]


def test_logs_that_nobody_asks_for_are_forgotten(runner: Runner, tap: ExpertTap) -> None:
    for number in range(MAX_LOGS + 10):
        step(runner, {f"r{number}": 1}, [A], new={f"r{number}": 1}, finished=(f"r{number - 1}",))
    assert len(tap.logged()) == MAX_LOGS + 1


def test_nothing_is_counted_while_counting_is_off(runner: Runner, tap: ExpertTap) -> None:
    tap.listen(counting=False)
    step(runner, {"x": 1}, [A])
    assert tap.total().sum() == 0 and tap.used("x") is None
    tap.listen(counting=True)
    step(runner, {"x": 1}, [A])
    assert tap.total().sum() == 4


def test_rows_behind_the_tokens_are_padding(runner: Runner, tap: ExpertTap) -> None:
    step(runner, {"x": 1}, [A, B, B])
    assert tap.total().sum() == 4


def test_a_step_in_which_a_layer_was_silent_is_not_counted(runner: Runner, tap: ExpertTap) -> None:
    step(runner, {"x": 1}, [])
    assert tap.total().sum() == 0


def test_a_step_that_cannot_be_counted_does_not_end_the_engine(
    runner: Runner, tap: ExpertTap, caplog: pytest.LogCaptureFixture
) -> None:
    step(runner, {"x": 1}, [A])
    # An expert that the model does not have.
    step(runner, {"x": 1}, [[[0, 99], [2, 3]]])
    assert tap.broken
    assert "not counted any more" in caplog.text
    step(runner, {"x": 1}, [A])
    tap.listen(counting=True)
    step(runner, {"x": 1}, [A])
    assert not tap.counting
    assert TapOutput(tap).take_output(SimpleNamespace(request_id="x", is_finished=lambda: True), None) is None
