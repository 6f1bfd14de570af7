"""Changes of precision in SQLite files: written once, found again, bounded; and files of the release before."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sqlite3
import time
from pathlib import Path

import pytest
from alembic import command

from cluster.config.records import RecordsConfig
from deployments.channel.receiver import ChannelReceiver
from deployments.paths import records_path
from deployments.records.batch import Batch, RecordRefusedError
from deployments.records.check import check_database
from deployments.records.reader import RecordsReader, Wanted
from deployments.records.recorder import NoRecords, Recorder, Records
from deployments.records.schema import _config, present_steps
from deployments.records.store import RecordStore
from deployments.records.tables import DECISIONS, decision_row
from deployments.records.target import Target, connect, target_of
from tests.unit.records.made import change, record

DAY_S = 86_400.0


@pytest.fixture
def target(state_dir: Path) -> Target:
    return target_of(RecordsConfig(), state_dir)


@pytest.fixture
def store(target):
    made = RecordStore(target, "ingress-1")
    yield made
    made.close()


@pytest.fixture
def reader(target) -> RecordsReader:
    return RecordsReader(target)


@pytest.fixture
def old_file(target) -> None:
    """A file of the release before changes were kept, with a decision in it."""
    engine = connect(target)
    with engine.begin() as connection:
        command.upgrade(_config(connection), "0001")
        connection.execute(DECISIONS.insert(), decision_row(record(request_id="old")))
    engine.dispose()


def tables(state_dir: Path) -> set[str]:
    with sqlite3.connect(records_path(state_dir)) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    connection.close()
    return names


def test_a_change_comes_back_whole(store, reader):
    given = change(error="no memory for it")
    store.write(Batch(changes=(given,)))
    (row,) = reader.precision_changes(None, None, 10)
    assert row == dataclasses.asdict(given)
    assert json.loads(json.dumps(row)) == row


def test_a_change_that_several_ingresses_write_is_there_once_as_it_was_first(store, target, reader):
    first = change(reason="the first to tell")
    store.write(Batch(changes=(first, first)))
    store.write(Batch(changes=(first,)))
    other = RecordStore(target, "ingress-2")
    other.write(Batch((record(),), changes=(dataclasses.replace(first, reason="late"), change())))
    other.close()
    rows = reader.precision_changes(None, None, 10)
    assert sorted(row["reason"] == "the first to tell" for row in rows) == [False, True]


def test_changes_are_found_by_model_and_time_latest_first(store, reader):
    now = time.time()
    ages = (("dense", 300.0), ("mini", 200.0), ("dense", 100.0))
    store.write(Batch(changes=tuple(change(id=f"{model}-{age:.0f}", model=model, at=now - age) for model, age in ages)))

    def found(model: str | None, since: float | None, limit: int = 10) -> list[str]:
        return [row["id"] for row in reader.precision_changes(model, since, limit)]

    assert found(None, None) == ["dense-100", "mini-200", "dense-300"]
    assert found("dense", None) == ["dense-100", "dense-300"]
    assert found("dense", now - 250) == ["dense-100"]
    assert found(None, now - 250) == ["dense-100", "mini-200"]
    assert found(None, None, limit=1) == ["dense-100"]
    assert found("nobody", None) == []


def test_changes_that_are_too_old_leave(target, reader):
    now = 1_000_000.0
    store = RecordStore(target, "i", keep_days=2, clock=lambda: now)
    kept = change(at=now - DAY_S)
    store.write(Batch(changes=(kept, change(at=now - 3 * DAY_S))))
    store.close()
    assert [row["id"] for row in reader.precision_changes(None, None, 9)] == [kept.id]


def test_changes_that_are_too_many_leave_the_oldest_first(target, reader):
    now = time.time()
    store = RecordStore(target, "i", max_changes=20)
    store.write(Batch(changes=tuple(change(at=now - number) for number in range(50))))
    store.prune()
    store.prune()
    rows = reader.precision_changes(None, None, 100)
    assert [row["at"] for row in rows] == [now - number for number in range(20)]
    # Even of one moment.
    store.write(Batch(changes=tuple(change(at=now + 1) for _ in range(5000))))
    store.prune()
    store.close()
    assert len(reader.precision_changes(None, None, 10_000)) == 20


def test_many_decisions_do_not_push_changes_out(target, reader):
    now = time.time()
    store = RecordStore(target, "i", max_records=100)
    store.write(Batch(tuple(record(at=now - number) for number in range(130)), changes=(change(at=now - DAY_S),)))
    store.prune()
    store.close()
    assert len(reader.decisions(Wanted(), 200)) == 100
    assert len(reader.precision_changes(None, None, 10)) == 1


def test_odd_text_is_written_and_what_no_database_takes_is_refused(store, reader):
    odd = change(id="x" * 90, replica="r" * 999, reason="nul \0 and \ud800" + "!" * 9000, error="e" * 9000)
    store.write(Batch(changes=(odd,)))
    (row,) = reader.precision_changes(None, None, 1)
    assert (len(row["id"]), len(row["replica"]), len(row["error"])) == (64, 256, 2000)
    assert row["reason"].startswith("nul  and ?!!")
    with pytest.raises(RecordRefusedError):
        store.write(Batch(changes=(change(level=None),)))


def test_a_file_of_the_release_before_is_read_as_it_is(old_file, reader, state_dir):
    assert reader.precision_changes(None, None, 10) == []
    assert [row["request_id"] for row in reader.decisions(Wanted(), 10)] == ["old"]
    assert check_database(RecordsConfig(), state_dir) is None
    assert "precision_changes" not in tables(state_dir)


def test_a_file_of_the_release_before_keeps_its_rows(old_file, store, reader, target):
    given = change()
    store.write(Batch(changes=(given,)))
    with connect(target, read_only=True).connect() as connection:
        assert present_steps(connection) == {"0002"}
    assert [row["id"] for row in reader.precision_changes(None, None, 10)] == [given.id]
    assert [row["request_id"] for row in reader.decisions(Wanted(), 10)] == ["old"]


def test_the_step_can_be_taken_back(old_file, store, reader, target, state_dir):
    store.write(Batch(changes=(change(),)))
    store.close()
    engine = connect(target)
    with engine.begin() as connection:
        command.downgrade(_config(connection), "0001")
    engine.dispose()
    assert "precision_changes" not in tables(state_dir)
    assert [row["request_id"] for row in reader.decisions(Wanted(), 10)] == ["old"]
    store.write(Batch(changes=(change(),)))
    assert len(reader.precision_changes(None, None, 10)) == 1


def test_where_nobody_has_written_yet(reader, state_dir):
    assert reader.precision_changes(None, None, 10) == []
    assert not records_path(state_dir).exists()


def test_an_ingress_writes_what_it_is_told(state_dir, reader):
    given = change()

    async def run() -> Records:
        records = Records(RecordsConfig(), state_dir, ChannelReceiver("bare"), "ingress")
        records.start()
        records.changed(given)
        await records.stop()
        return records

    counts = asyncio.run(run()).counts()
    assert (counts.noted, counts.written) == (1, 1)
    assert [row["id"] for row in reader.precision_changes(None, None, 10)] == [given.id]


def test_nothing_is_kept_where_records_are_off(state_dir):
    async def run() -> None:
        records = Records(RecordsConfig(enabled=False), state_dir, ChannelReceiver("bare"), "ingress")
        records.start()
        for each in (records, NoRecords()):
            recorder: Recorder = each
            recorder.changed(change())
        await records.stop()

    asyncio.run(run())
    assert not records_path(state_dir).exists()
