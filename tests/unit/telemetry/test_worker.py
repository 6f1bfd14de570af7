from __future__ import annotations

import os
import threading
import time

import pytest

from deployments.telemetry.worker import BatchWorker


def test_everything_arrives_in_order_in_bounded_batches():
    batches: list[list[int]] = []
    worker = BatchWorker(
        "t", lambda batch: batches.append(list(batch)) or 0, max_queue=1000, max_batch=10, delay_s=0.01
    )
    assert all(worker.offer(number) for number in range(95))
    assert worker.flush(5)
    assert [number for batch in batches for number in batch] == list(range(95))
    assert max(map(len, batches)) <= 10
    assert worker.consumed == 95
    assert worker.close(1)


def test_what_does_not_fit_is_dropped_and_counted_without_waiting():
    gate = threading.Event()
    worker = BatchWorker("t", lambda batch: 0 if gate.wait(10) else len(batch), max_queue=20, max_batch=5, delay_s=0)
    started = time.perf_counter()
    taken = sum(worker.offer(number) for number in range(1000))
    assert time.perf_counter() - started < 0.5
    assert 20 <= taken <= 25
    assert worker.dropped_full == 1000 - taken
    assert not worker.flush(0.05)
    gate.set()
    assert worker.flush(5)
    assert worker.close(1)


def test_a_failing_consumer_is_counted_and_survived():
    def consume(batch):
        if "bad" in batch:
            raise RuntimeError("no")
        return 1

    worker = BatchWorker("t", consume, max_queue=10, max_batch=1, delay_s=0)
    for item in ("bad", "good", "good"):
        worker.offer(item)
    assert worker.flush(5)
    assert worker.dropped_failed == 3
    assert worker.close(1)


def test_an_item_waits_for_the_delay_but_not_much_longer():
    arrived = threading.Event()
    worker = BatchWorker("t", lambda batch: arrived.set() or 0, max_queue=10, max_batch=10, delay_s=0.1)
    started = time.perf_counter()
    worker.offer(1)
    assert arrived.wait(5)
    assert 0.08 < time.perf_counter() - started < 1
    assert worker.close(1)


def test_closing_is_bounded_in_time_and_counts_what_is_left():
    gate = threading.Event()
    worker = BatchWorker("t", lambda batch: int(not gate.wait(10)), max_queue=100, max_batch=1, delay_s=0)
    for number in range(50):
        worker.offer(number)
    started = time.perf_counter()
    assert not worker.close(0.1)
    assert time.perf_counter() - started < 1
    assert not worker.offer(1)
    assert worker.dropped_full >= 49
    gate.set()
    assert worker.close(1)


def test_an_idle_worker_does_not_wake_up():
    worker = BatchWorker("t", lambda batch: 0, max_queue=10, max_batch=10, delay_s=0.001)
    worker.offer(1)
    worker.flush(5)
    time.sleep(0.05)
    drains = []
    worker._drain = lambda: drains.append(1)  # type: ignore[method-assign]
    time.sleep(0.1)
    assert drains == []


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_drops_instead_of_touching_the_parents_things():
    seen: list[int] = []
    worker = BatchWorker("t", lambda batch: seen.extend(batch) or 0, max_queue=10, max_batch=10, delay_s=0)
    child = os.fork()
    if child == 0:
        os._exit(0 if not worker.offer(1) and worker.flush(0.1) and worker.close(0.1) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert worker.offer(2)
    assert worker.flush(5)
    assert seen == [2]
    assert worker.close(1)


@pytest.mark.parametrize("wrong", [{"max_queue": 0}, {"max_batch": 0}, {"delay_s": -1}])
def test_impossible_bounds_are_refused(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        BatchWorker("t", len, **({"max_queue": 1, "max_batch": 1, "delay_s": 0} | wrong))
