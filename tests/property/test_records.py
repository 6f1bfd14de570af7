"""Whatever the database does: what was noted is what was written, what waits, and what is counted as lost."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.records.batch import Batch, DatabaseAwayError, RecordRefusedError
from deployments.records.writer import BATCH, MAX_CHANGES, RecordWriter
from tests.unit.records.made import change, record

Act = tuple[str, int]
ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(1, 40)),
        st.tuples(st.just("change"), st.integers(1, 20)),
        st.tuples(st.just("step"), st.sampled_from([0, 1, 2])),
        st.tuples(st.just("wait"), st.integers(0, 10)),
        st.tuples(st.just("fail"), st.integers(1, 2)),
    ),
    max_size=40,
)
WELL, AWAY, PICKY = 0, 1, 2


class Moody:
    """A database that is well, away, or refuses every third record and change for good."""

    def __init__(self) -> None:
        self.mood = WELL
        self.written: list[str] = []
        self.changes: list[str] = []
        self.lost = 0

    def write(self, batch: Batch) -> None:
        if self.mood == AWAY:
            raise DatabaseAwayError("away")
        records, changes = [one.request_id for one in batch.records], [one.id for one in batch.changes]
        if self.mood == PICKY and any(int(number) % 3 == 0 for number in records + changes):
            raise RecordRefusedError("DataError")
        self.written += records
        self.changes += changes
        self.lost += sum(loss.records for loss in batch.losses)

    def close(self) -> None:
        """Nothing is held."""


@settings(deadline=None)
@given(acts=ACTS, room=st.integers(1, 60))
def test_noted_is_written_and_queued_and_dropped(acts: list[Act], room: int) -> None:
    now = [0.0]
    store = Moody()
    writer = RecordWriter(lambda: store, room, clock=lambda: now[0])
    numbers = _count()
    put = 0
    for act, amount in acts:
        if act == "put":
            for _ in range(amount):
                writer.put(record(request_id=str(next(numbers))))
            put += amount
        elif act == "change":
            for _ in range(amount):
                writer.put_change(change(id=str(next(numbers))))
            put += amount
        elif act == "fail":
            for _ in range(amount):
                writer.failed()
            put += amount
        elif act == "wait":
            now[0] += amount
        else:
            store.mood = amount
            writer._step()
        counts = writer.counts()
        assert counts.noted == put == counts.written + counts.queued + sum(counts.dropped.values())
        written = store.written + store.changes
        assert counts.written == len(written) == len(set(written))
        assert counts.queued <= room + MAX_CHANGES + 2 * BATCH
    store.mood = WELL
    now[0] += 100
    writer._step()
    writer._step()
    counts = writer.counts()
    assert counts.queued == 0
    # What is lost is known in the database, too, once it takes something again.
    assert store.lost == sum(counts.dropped.values())
    for written in (store.written, store.changes):
        assert written == sorted(written, key=int)


def _count() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1
