"""Records on a real PostgreSQL server, and of every request of a running cluster."""

from __future__ import annotations

import json
import random
import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from cluster.config.records import RecordsConfig
from cluster.records.precision_change import PrecisionChange
from cluster.records.replica_time import ReplicaBucket, ReplicaSeconds
from deployments.records.batch import Batch, DatabaseAwayError
from deployments.records.check import check_database
from deployments.records.reader import RecordsReader, Wanted
from deployments.records.schema import _config
from deployments.records.store import RecordStore
from deployments.records.tables import DECISIONS, METADATA, decision_row
from deployments.records.target import connect, target_of
from deployments.records.writer import RecordWriter
from tests.clusters import RunningCluster, simulated_config, start_cluster, stop_cluster
from tests.faults.load import CHAT, chat
from tests.integration.cluster_processes import unused_port, wait_for
from tests.integration.postgres import Postgres
from tests.unit.records.made import change, record

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def password() -> str:
    return secrets.token_hex(8)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory, password: str) -> Iterator[Postgres]:
    server = Postgres(tmp_path_factory.mktemp("postgres") / "server", unused_port(), password)
    yield server
    server.stop()


@pytest.fixture
def config(postgres: Postgres, password: str, monkeypatch: pytest.MonkeyPatch) -> RecordsConfig:
    monkeypatch.setenv("RECORDS_PASSWORD", password)
    return RecordsConfig(url=postgres.url, password_env="RECORDS_PASSWORD")


def test_the_tables_are_made_and_what_is_written_comes_back(config: RecordsConfig, state_dir: Path) -> None:
    target = target_of(config, state_dir)
    store = RecordStore(target, "ingress-1")
    one = record(reason="auto: Grüße, \N{SNOWMAN}", tenant="first")
    store.write(Batch((one,), (), ()))
    store.close()
    (row,) = RecordsReader(target).decisions(Wanted(tenant="first"), 10)
    assert (row["request_id"], row["reason"]) == (one.request_id, one.reason)
    # Again by another ingress, and by the command line: the steps are there already.
    RecordStore(target, "ingress-2").close()
    check_database(config, state_dir)
    assert {row["model"] for row in RecordsReader(target).costs("model", None)} == {"dense", "mini"}


def test_a_change_of_precision_is_kept_once_however_many_ingresses_write_it(
    config: RecordsConfig, postgres: Postgres, password: str, state_dir: Path
) -> None:
    postgres.sql(password, "CREATE DATABASE ladders")
    target = target_of(config.model_copy(update={"url": postgres.url.replace("/records", "/ladders")}), state_dir)
    # An earlier release was here first.
    engine = connect(target)
    with engine.begin() as connection:
        command.upgrade(_config(connection), "0001")
        connection.execute(DECISIONS.insert(), decision_row(record(request_id="old")))
    assert RecordsReader(target).precision_changes(None, None, 10) == []
    now = time.time()
    changes = tuple(
        change(at=now - number, reason="90 % \0 voll: \N{SNOWMAN} \ud800", error=None if number else "e" * 9000)
        for number in range(30)
    )
    stores = [RecordStore(target, f"ingress-{number}", max_changes=20) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda store: store.write(Batch(changes=changes)), stores))
        list(pool.map(RecordStore.prune, stores))
    for store in stores:
        store.close()
    reader = RecordsReader(target)
    rows = reader.precision_changes("dense", None, 100)
    assert [row["id"] for row in rows] == [one.id for one in changes[:20]]
    assert (rows[0]["reason"], len(rows[0]["error"]), rows[1]["error"]) == ("90 %  voll: \N{SNOWMAN} ?", 2000, None)
    assert json.loads(json.dumps(rows)) == rows
    assert len(reader.precision_changes(None, now - 4.5, 100)) == 5
    assert [row["request_id"] for row in reader.decisions(Wanted(), 10)] == ["old"]
    with engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
        command.downgrade(_config(connection), "0001")
    engine.dispose()
    assert [row["request_id"] for row in reader.decisions(Wanted(), 10)] == ["old"]


def test_ingresses_that_write_the_same_changes_at_once_are_not_in_each_others_way(
    config: RecordsConfig, state_dir: Path
) -> None:
    target = target_of(config, state_dir)
    stores = [RecordStore(target, f"ingress-{number}") for number in range(4)]
    together = threading.Barrier(len(stores))

    def write(store: RecordStore, changes: list[PrecisionChange]) -> None:
        together.wait(10)
        store.write(Batch(changes=tuple(changes)))

    with ThreadPoolExecutor(len(stores)) as pool:
        list(pool.map(lambda store: store.write(Batch()), stores))
        for _ in range(12):
            changes = [change() for _ in range(250)]
            # They hear of them in any order, and must not wait for each other in a ring.
            orders = [random.Random(number).sample(changes, len(changes)) for number in range(len(stores))]
            list(pool.map(write, stores, orders))
    for store in stores:
        store.close()
    assert len(RecordsReader(target).precision_changes(None, None, 10_000)) == 12 * 250


def test_nothing_is_lost_when_the_server_goes_and_comes_back(
    config: RecordsConfig, postgres: Postgres, state_dir: Path
) -> None:
    target = target_of(config, state_dir)
    writer = RecordWriter(lambda: RecordStore(target, "ingress-3"), 5000)
    writer.start()
    over = threading.Event()
    noted: list[str] = []

    def keep_noting() -> None:
        while not over.is_set():
            one = record(tenant="restart")
            noted.append(one.id)
            writer.put(one)
            time.sleep(0.005)

    thread = threading.Thread(target=keep_noting)
    thread.start()
    try:
        for _ in range(2):
            time.sleep(0.7)
            postgres.stop()
            time.sleep(0.7)
            postgres.start()
        time.sleep(0.5)
    finally:
        over.set()
        thread.join()
    wait_for(lambda: writer.counts().queued == 0, 30.0)
    writer.close()
    assert sum(writer.counts().dropped.values()) == 0
    assert writer.counts().written == len(noted) > 100
    found = RecordsReader(target).decisions(Wanted(tenant="restart"), 10_000)
    assert len(found) == len(noted)


def test_what_the_queue_cannot_hold_is_counted_there_and_in_the_database(
    config: RecordsConfig, postgres: Postgres, state_dir: Path
) -> None:
    target = target_of(config, state_dir)
    writer = RecordWriter(lambda: RecordStore(target, "ingress-4"), 20)
    writer.start()
    writer.put(record(tenant="full"))
    wait_for(lambda: writer.counts().written == 1, 10.0)
    postgres.stop()
    try:
        kept = sum(writer.put(record(tenant="full")) for _ in range(500))
    finally:
        postgres.start()
    dropped = 500 - kept
    wait_for(lambda: RecordsReader(target).lost(None) == {"queue_full": dropped}, 30.0)
    writer.close()
    counts = writer.counts()
    assert (counts.noted, counts.written, counts.dropped["queue_full"]) == (501, 1 + kept, dropped)
    assert dropped > 0 and len(RecordsReader(target).decisions(Wanted(tenant="full"), 1000)) == 1 + kept


def test_ingresses_that_start_together_make_the_tables_once(
    config: RecordsConfig, postgres: Postgres, password: str, state_dir: Path
) -> None:
    postgres.sql(password, "CREATE DATABASE fresh")
    fresh = config.model_copy(update={"url": postgres.url.replace("/records", "/fresh")})
    target = target_of(fresh, state_dir)
    bucket = ReplicaBucket(int(time.time() // 60), "dense", ReplicaSeconds(busy=1.0, idle=2.0))
    stores = [RecordStore(target, f"ingress-{number}") for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda store: store.write(Batch((record(),), (bucket,))), stores))
    for store in stores:
        store.close()
    reader = RecordsReader(target)
    assert reader.replica_seconds(None) == {"dense": {"busy_s": 1.0, "idle_s": 2.0}}
    # PostgreSQL adds up into decimals; what scripts read is JSON.
    by_model = {row["model"]: row for row in json.loads(json.dumps(reader.costs("model", None)))}
    assert (by_model["dense"]["requests"], by_model["dense"]["prompt_tokens"]) == (4, 40)
    assert by_model["dense"]["engine_seconds"] == 8.0
    engine = connect(target)
    with engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    engine.dispose()


def test_a_newer_database_is_refused(config: RecordsConfig, postgres: Postgres, password: str, state_dir: Path) -> None:
    postgres.sql(password, "CREATE DATABASE newer")
    target = target_of(config.model_copy(update={"url": postgres.url.replace("/records", "/newer")}), state_dir)
    store = RecordStore(target, "ingress-1")
    store.write(Batch((record(),)))
    store.close()
    postgres.sql(password, "UPDATE alembic_version SET version_num = '9999'", "newer")
    with pytest.raises(DatabaseAwayError, match="9999, which this release does not know") as error:
        store.write(Batch((record(),)))
    assert password not in str(error.value)


def test_what_is_too_much_leaves(config: RecordsConfig, postgres: Postgres, password: str, state_dir: Path) -> None:
    postgres.sql(password, "CREATE DATABASE small")
    target = target_of(config.model_copy(update={"url": postgres.url.replace("/records", "/small")}), state_dir)
    store = RecordStore(target, "ingress-1", max_records=100)
    store.write(Batch(tuple(record(at=time.time() - number) for number in range(130))))
    store.prune()
    store.close()
    assert len(RecordsReader(target).decisions(Wanted(), 1000)) == 100
    assert RecordsReader(target).costs("model", None)[0]["requests"] == 100


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    started = start_cluster(simulated_config("alpha"), tmp_path_factory.mktemp("recorded") / "state", unused_port())
    yield started
    stop_cluster(started.env)


def test_every_request_of_a_cluster_is_in_the_database_however_it_ended(cluster: RunningCluster) -> None:
    with cluster.client() as client:
        for _ in range(5):
            assert client.post(CHAT, json=chat("auto", 4)).status_code == 200
        assert client.post(CHAT, json=chat("alpha", 100_000)).status_code == 400
        with pytest.raises(httpx.TimeoutException):
            client.post(CHAT, json=chat("alpha", 1500), timeout=0.5)

    def listed() -> list[dict[str, object]]:
        found: list[dict[str, object]] = json.loads(cluster.pointsman("records", "--json").stdout)["records"]
        return found

    wait_for(lambda: len(listed()) == 7, 20.0, every_s=0.5)
    statuses = sorted(int(str(row["status"])) for row in listed())
    assert statuses == [200] * 5 + [400, 499]
    one = next(row for row in listed() if row["status"] == 200)
    shown = cluster.pointsman("records", str(one["request_id"]))
    assert "alpha" in shown.stdout
    costs = json.loads(cluster.pointsman("cost", "--json").stdout)
    assert "alpha" in json.dumps(costs)
    assert cluster.pointsman("cost").returncode == 0


def test_a_caller_who_left_is_written_down_with_what_the_engine_did_for_it(cluster: RunningCluster) -> None:
    body = chat("alpha", 1500, stream=True)
    with cluster.client() as client, client.stream("POST", CHAT, json=body, headers={"x-request-id": "left"}) as stream:
        for number, _ in enumerate(stream.iter_lines()):
            if number > 20:
                break

    def found() -> list[dict[str, Any]]:
        shown = cluster.pointsman("records", "left", "--json")
        rows: list[dict[str, Any]] = json.loads(shown.stdout) if shown.returncode == 0 else []
        return rows

    wait_for(found, 20.0, every_s=0.5)
    (row,) = found()
    assert (row["status"], row["error"], row["streamed"]) == (499, "client_gone", True)
    (used,) = row["models"]
    assert used["estimated"] and used["completion_tokens"] >= 5 and 0 < used["engine_seconds"] <= row["total_s"]


def test_idle_replicas_cost_too(cluster: RunningCluster) -> None:
    def seconds() -> dict[str, float]:
        found: dict[str, dict[str, float]] = json.loads(cluster.pointsman("cost", "--json").stdout)["replicas"]
        return found.get("alpha", {"busy_s": 0.0, "idle_s": 0.0})

    before, began = seconds(), time.monotonic()
    # The one replica has nothing to do, and what is seen of it is written every ten seconds.
    wait_for(lambda: seconds()["idle_s"] > before["idle_s"], 30.0, every_s=0.5)
    with cluster.client() as client:
        text = client.get("/metrics").text
    passed = time.monotonic() - began
    after = seconds()
    assert after["idle_s"] - before["idle_s"] <= passed + 10 + 1
    assert 'pointsman_replica_seconds_total{model="alpha",state="idle"}' in text
    assert 'pointsman_engine_seconds_total{model="alpha"}' in text
    assert 'pointsman_records_dropped_total{process="ingress",reason="queue_full"} 0.0' in text
