"""SQLite files: their schema, what is written twice, what leaves, and files that are broken or too new."""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import time
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from cluster.config.records import RecordsConfig
from cluster.records.replica_time import ReplicaBucket, ReplicaSeconds
from deployments.paths import records_path
from deployments.records.batch import Batch, DatabaseAwayError, Loss, RecordRefusedError
from deployments.records.check import check_database
from deployments.records.reader import RecordsReader, RecordsUnreadableError, Wanted
from deployments.records.schema import NewerDatabaseError
from deployments.records.store import RecordStore
from deployments.records.tables import METADATA
from deployments.records.target import RecordsConfigError, Target, connect, target_of
from tests.unit.records.made import cost, record

DAY_S = 86_400.0
MINUTE = int(time.time() // 60)


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


def test_the_steps_make_the_tables_that_the_code_knows(store, target):
    store.write(Batch())
    with connect(target).begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_a_record_comes_back_whole(store, reader):
    trail = [
        {"model": "dense", "confidence": 0.4, "outcome": "requeried", "why": "confidence 0.40 of dense is below 0.6"}
    ]
    given = record(status=499, error="client_gone", trail=trail, confidence=0.5, verified=False, ttft_s=0.25)
    store.write(Batch((given,)))
    (row,) = reader.find("request-1")
    assert row["trail"] == trail
    assert (row["status"], row["error"], row["verified"], row["confidence"]) == (499, "client_gone", False, 0.5)
    assert row["candidates"][0] == {
        "model": "dense",
        "healthy": True,
        "fits": True,
        "score": 0.75,
        "reason": "serves strong",
    }
    assert row["signals"]["intent"] == {"value": "code", "source": "lexical", "age_s": 0.0}
    assert (row["prompt_tokens"], row["completion_tokens"], row["engine_seconds"]) == (20, 10, 2.5)
    assert {one["model"]: one["engine_seconds"] for one in row["models"]} == {"dense": 2.0, "mini": 0.5}
    assert reader.find("abab")[0]["id"] == given.id
    assert reader.find("nothing") == []


def test_a_batch_written_twice_is_there_once(store, reader):
    bucket = ReplicaBucket(MINUTE, "dense", ReplicaSeconds(3, 7))
    batch = Batch((record(),), (bucket,), (Loss("l" * 32, time.time(), "queue_full", 3),))
    store.write(batch)
    store.write(batch)
    assert len(reader.decisions(Wanted(), 10)) == 1
    assert reader.costs("model", None)[0]["requests"] == 1
    assert reader.lost(None) == {"queue_full": 3}
    assert reader.replica_seconds(None) == {"dense": {"busy_s": 3.0, "idle_s": 7.0}}


def test_a_minute_that_grew_replaces_what_was_known_of_it_and_two_ingresses_count_once(store, target, reader):
    store.write(Batch(buckets=(ReplicaBucket(MINUTE, "dense", ReplicaSeconds(1, 1)),)))
    grown = (
        ReplicaBucket(MINUTE, "dense", ReplicaSeconds(2, 2)),
        ReplicaBucket(MINUTE, "dense", ReplicaSeconds(3, 20)),
    )
    store.write(Batch(buckets=grown))
    other = RecordStore(target, "ingress-2")
    other.write(Batch(buckets=(ReplicaBucket(MINUTE, "dense", ReplicaSeconds(3, 19)),)))
    other.close()
    assert reader.replica_seconds(None) == {"dense": {"busy_s": 3.0, "idle_s": 20.0}}


def test_costs_are_added_up(store, reader):
    from cluster.cost import RequestCost

    external = RequestCost((cost("hosted", seconds=4, money=0.25), cost()))
    store.write(Batch((record(), record(rule="code", tenant="other", cost=external))))
    by_model = {row["model"]: row for row in reader.costs("model", None)}
    assert (by_model["hosted"]["cost"], by_model["dense"]["engine_seconds"], by_model["dense"]["calls"]) == (
        0.25,
        4.0,
        2,
    )
    assert {row["rule"]: row["engine_seconds"] for row in reader.costs("rule", None)} == {"default": 2.5, "code": 6.0}
    assert {row["tenant"]: row["cost"] for row in reader.costs("tenant", None)} == {"acme": 0.0, "other": 0.25}


def test_records_are_found_by_what_they_are(store, reader):
    old, failed = (
        record(at=time.time() - DAY_S, request_id="old"),
        record(status=503, model="mini", reason="50% sure_of it"),
    )
    store.write(Batch((old, failed)))
    assert [row["request_id"] for row in reader.decisions(Wanted(since=time.time() - 60), 9)] == ["request-1"]
    assert len(reader.decisions(Wanted(model="mini"), 9)) == 1
    assert len(reader.decisions(Wanted(failed=True), 9)) == 1
    assert len(reader.decisions(Wanted(reason="default"), 9)) == 2
    assert len(reader.decisions(Wanted(reason="0% SURE_"), 9)) == 1
    assert len(reader.decisions(Wanted(reason="0_ sure"), 9)) == 0
    assert len(reader.decisions(Wanted(tenant="nobody"), 9)) == 0
    assert len(reader.decisions(Wanted(), 1)) == 1


def test_what_is_too_old_leaves(target, reader):
    now = 1_000_000.0
    store = RecordStore(target, "i", keep_days=2, clock=lambda: now)
    kept, left = record(at=now - DAY_S), record(at=now - 3 * DAY_S)
    old = ReplicaBucket(int((now - 3 * DAY_S) // 60), "dense", ReplicaSeconds(1, 1))
    store.write(Batch((kept, left), (old,), (Loss("l" * 32, now - 3 * DAY_S, "refused", 1),)))
    store.close()
    assert [row["id"] for row in reader.decisions(Wanted(), 9)] == [kept.id]
    assert reader.costs("model", None)[0]["requests"] == 1
    assert (reader.replica_seconds(None), reader.lost(None)) == ({}, {})


def test_what_is_too_much_leaves_the_oldest_first(target, reader):
    store = RecordStore(target, "i", max_records=100, keep_days=36_500)
    store.write(Batch(tuple(record(at=float(1_700_000_000 + number)) for number in range(130))))
    store.prune()
    rows = reader.decisions(Wanted(), 200)
    store.close()
    assert [row["at"] for row in rows] == [float(1_700_000_000 + number) for number in range(129, 29, -1)]


def test_the_file_is_its_owners_alone(store, state_dir):
    store.write(Batch())
    assert stat.S_IMODE(records_path(state_dir).stat().st_mode) == 0o600


def test_a_broken_file_is_put_aside(store, reader, state_dir, caplog):
    records_path(state_dir).write_bytes(b"no database " * 1000)
    store.write(Batch((record(),)))
    assert len(reader.decisions(Wanted(), 9)) == 1
    assert len(list(state_dir.glob("records.sqlite.broken-*"))) == 1
    assert "records_database_put_aside" in caplog.text


def test_a_file_damaged_inside_is_put_aside(store, reader, state_dir):
    store.write(Batch(tuple(record(request_id=f"r{number}" * 20) for number in range(300))))
    store.close()
    path = records_path(state_dir)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(os.urandom(40_000))
    store.write(Batch((record(),)))
    assert len(reader.decisions(Wanted(), 999)) == 1


def test_a_file_that_is_deleted_is_made_anew(store, reader, state_dir):
    store.write(Batch((record(),)))
    for path in state_dir.glob("records.sqlite*"):
        path.unlink()
    store.write(Batch((record(),)))
    assert len(reader.decisions(Wanted(), 9)) == 1


def test_a_newer_database_is_refused_and_left_as_it_is(store, reader, state_dir):
    store.write(Batch((record(),)))
    store.close()
    with sqlite3.connect(records_path(state_dir)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = records_path(state_dir).read_bytes()
    with pytest.raises(DatabaseAwayError, match=r"9999, which this release does not know.*run the release"):
        store.write(Batch((record(),)))
    with pytest.raises(NewerDatabaseError, match="9999"):
        check_database(RecordsConfig(), state_dir)
    with pytest.raises(RecordsUnreadableError, match="9999"):
        reader.decisions(Wanted(), 1)
    store.close()
    assert records_path(state_dir).read_bytes() == before


def test_a_record_that_no_database_takes_is_refused_for_good(store):
    with pytest.raises(RecordRefusedError):
        store.write(Batch((record(status=None),)))
    store.write(Batch((record(),)))


def test_text_that_is_odd_is_written_all_the_same(store, reader):
    store.write(Batch((record(request_id="x" * 500, reason="nul \0 and \ud800", key_name="é" * 999),)))
    (row,) = reader.decisions(Wanted(), 1)
    assert (len(row["request_id"]), len(row["key_name"]), row["reason"]) == (128, 256, "nul  and ?")


def test_a_directory_that_cannot_be_written_to_is_away(tmp_path):
    (tmp_path / "file").write_text("")
    store = RecordStore(target_of(RecordsConfig(), tmp_path / "file" / "below"), "i")
    with pytest.raises(DatabaseAwayError):
        store.write(Batch((record(),)))


def test_the_password_shows_nowhere(tmp_path, caplog, free_port):
    secret = "hunter2-of-the-database"
    (tmp_path / "password").write_text(secret + "\n")
    url = f"postgresql://pointsman@127.0.0.1:{free_port}/records"
    by_file = RecordsConfig(url=url, password_file=str(tmp_path / "password"))
    by_variable = RecordsConfig(url=url, password_env="DB_PASSWORD")
    for config, environ in ((by_file, {}), (by_variable, {"DB_PASSWORD": secret})):
        target = target_of(config, tmp_path, environ)
        assert target.url.password == secret
        with pytest.raises(DatabaseAwayError) as error, caplog.at_level(logging.DEBUG):
            RecordStore(target, "i").write(Batch((record(),)))
        assert secret not in f"{target!r} {target.shown} {error.value} {caplog.text}"
    remark = check_database(by_file, tmp_path)
    assert remark is not None and secret not in remark and str(free_port) in remark
    with pytest.raises(RecordsConfigError, match="DB_PASSWORD, which is not set"):
        target_of(by_variable, tmp_path, {})
    with pytest.raises(RecordsConfigError, match="cannot be read"):
        target_of(RecordsConfig(url=url, password_file=str(tmp_path / "none")), tmp_path)
