"""The queue and its thread, with a database that does as a test tells it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import pytest

from cluster.records.replica_time import ReplicaBucket, ReplicaSeconds
from deployments.records import writer as writing
from deployments.records.batch import Batch, DatabaseAwayError, RecordRefusedError
from deployments.records.writer import RecordWriter
from tests.unit.records.made import change, record


class FakeStore:
    """Takes batches, unless it is away, or refuses a record that a test names."""

    def __init__(self) -> None:
        self.away = False
        self.refused = ""
        self.hang: threading.Event | None = None
        self.batches: list[Batch] = []
        self.tries = 0
        self.closed = False

    def write(self, batch: Batch) -> None:
        self.tries += 1
        if self.hang is not None:
            self.hang.wait(10)
        if self.away:
            raise DatabaseAwayError("away")
        if any(one.request_id == self.refused for one in batch.records) or any(
            one.id == self.refused for one in batch.changes
        ):
            raise RecordRefusedError("DataError")
        self.batches.append(batch)

    def close(self) -> None:
        self.closed = True

    @property
    def written(self) -> list[str]:
        return [one.request_id for batch in self.batches for one in batch.records]

    @property
    def changes(self) -> list[str]:
        return [one.id for batch in self.batches for one in batch.changes]

    @property
    def losses(self) -> dict[str, int]:
        told: dict[str, int] = {}
        for batch in self.batches:
            for loss in batch.losses:
                told[loss.reason] = told.get(loss.reason, 0) + loss.records
        return told


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def writer(store, monkeypatch):
    monkeypatch.setattr(writing, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(writing, "LONGEST_RETRY_S", 0.05)
    made = RecordWriter(lambda: store, 10, poll_s=0.01)
    yield made
    made.close(0.5)


def wait_for(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_is_put_is_written_in_order(writer, store):
    writer.start()
    for number in range(5):
        assert writer.put(record(request_id=str(number)))
    wait_for(lambda: len(store.written) == 5)
    assert store.written == ["0", "1", "2", "3", "4"]
    counts = writer.close()
    assert (counts.noted, counts.written, counts.queued, sum(counts.dropped.values())) == (5, 5, 0, 0)
    assert store.closed


def test_a_full_queue_drops_and_counts(writer, store):
    taken = [writer.put(record(request_id=str(number))) for number in range(13)]
    assert taken == [True] * 10 + [False] * 3
    assert writer.counts().dropped["queue_full"] == 3
    writer.start()
    wait_for(lambda: store.losses)
    assert store.losses == {"queue_full": 3}
    assert len(store.written) == 10


def test_nothing_is_lost_while_the_queue_has_room(writer, store, caplog):
    store.away = True
    writer.start()
    for number in range(8):
        assert writer.put(record(request_id=str(number)))
    wait_for(lambda: store.tries > 3)
    assert writer.counts().queued == 8
    store.away = False
    wait_for(lambda: len(store.written) == 8)
    assert not any(writer.counts().dropped.values())
    away = [line for line in caplog.records if "away" in str(line.msg)]
    assert len(away) == 1 and away[0].levelno == logging.ERROR


def test_a_database_that_hangs_does_not_hold_up_who_puts(writer, store):
    store.hang = threading.Event()
    writer.start()
    writer.put(record())
    wait_for(lambda: store.tries)
    began = time.perf_counter()
    for _ in range(1000):
        writer.put(record())
    assert time.perf_counter() - began < 1.0
    counts = writer.counts()
    assert counts.noted == 1001 == counts.queued + counts.dropped["queue_full"]
    store.hang.set()


def test_one_record_that_is_refused_does_not_hold_up_the_others(writer, store):
    store.refused = "3"
    for number in range(6):
        writer.put(record(request_id=str(number)))
    writer.put_bucket(ReplicaBucket(1, "dense", ReplicaSeconds(1, 2)))
    writer.start()
    wait_for(lambda: store.losses)
    assert sorted(store.written) == ["0", "1", "2", "4", "5"]
    assert writer.counts().dropped["refused"] == 1
    assert store.losses == {"refused": 1}
    assert [bucket.model for batch in store.batches for bucket in batch.buckets] == ["dense"]


def test_what_comes_after_the_end_is_counted(writer, store):
    writer.start()
    writer.put(record())
    writer.close()
    assert len(store.written) == 1
    assert not writer.put(record())
    assert writer.counts().dropped["closed"] == 1


def test_the_end_waits_for_a_bounded_time_and_counts_what_is_left(writer, store):
    store.away = True
    writer.start()
    for _ in range(4):
        writer.put(record())
    began = time.monotonic()
    counts = writer.close(0.3)
    assert time.monotonic() - began < 2
    assert (counts.dropped["closed"], counts.queued, counts.noted) == (4, 0, 4)


def test_a_store_that_cannot_be_made_is_tried_again(monkeypatch, store):
    monkeypatch.setattr(writing, "FIRST_RETRY_S", 0.01)
    tries: list[int] = []

    def make() -> FakeStore:
        tries.append(1)
        if len(tries) < 3:
            raise RuntimeError("its secret")
        return store

    writer = RecordWriter(make, 10, poll_s=0.01)
    writer.start()
    writer.put(record())
    wait_for(lambda: store.written)
    assert writer.close().written == 1


def test_changes_are_written_in_order_beside_the_records(writer, store):
    for number in range(3):
        assert writer.put(record(request_id=str(number)))
        assert writer.put_change(change(id=f"change-{number}"))
    assert writer.counts().queued == 6
    writer.start()
    wait_for(lambda: len(store.changes) == 3)
    assert (store.changes, store.written) == (["change-0", "change-1", "change-2"], ["0", "1", "2"])
    counts = writer.close()
    assert (counts.noted, counts.written, counts.queued, sum(counts.dropped.values())) == (6, 6, 0, 0)


def test_decisions_do_not_crowd_out_changes_and_what_is_too_much_is_counted(writer, store, monkeypatch):
    monkeypatch.setattr(writing, "MAX_CHANGES", 4)
    for _ in range(12):
        writer.put(record())
    assert [writer.put_change(change(id=str(number))) for number in range(6)] == [True] * 4 + [False] * 2
    assert writer.counts().dropped["queue_full"] == 4
    writer.start()
    wait_for(lambda: store.losses)
    assert (store.losses, store.changes) == ({"queue_full": 4}, ["0", "1", "2", "3"])


def test_changes_wait_while_the_database_is_away(writer, store):
    store.away = True
    writer.start()
    writer.put_change(change(id="one"))
    wait_for(lambda: store.tries > 3)
    assert writer.counts().queued == 1
    store.away = False
    wait_for(lambda: store.changes == ["one"])
    assert not any(writer.counts().dropped.values())


def test_a_database_that_hangs_does_not_hold_up_who_puts_a_change(writer, store):
    store.hang = threading.Event()
    writer.start()
    writer.put_change(change())
    wait_for(lambda: store.tries)
    began = time.monotonic()
    for _ in range(2000):
        writer.put_change(change())
    assert time.monotonic() - began < 1.0
    assert writer.counts().dropped["queue_full"] == 1000
    store.hang.set()


def test_one_change_that_is_refused_does_not_hold_up_the_others(writer, store):
    store.refused = "change-1"
    for number in range(3):
        writer.put_change(change(id=f"change-{number}"))
    writer.put(record(request_id="request"))
    writer.start()
    wait_for(lambda: store.losses)
    assert (sorted(store.changes), store.written) == (["change-0", "change-2"], ["request"])
    assert store.losses == {"refused": 1} and writer.counts().dropped["refused"] == 1


def test_changes_at_the_end_and_after_it_are_written_or_counted(writer, store):
    writer.start()
    writer.put_change(change(id="last"))
    writer.close()
    assert store.changes == ["last"]
    assert not writer.put_change(change())
    assert writer.counts().dropped["closed"] == 1


def test_changes_that_nobody_takes_are_counted_at_the_end(writer, store):
    store.away = True
    writer.start()
    for _ in range(3):
        writer.put_change(change())
    counts = writer.close(0.2)
    assert (counts.dropped["closed"], counts.queued, counts.noted) == (3, 0, 3)
