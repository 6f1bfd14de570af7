"""Records on a real PostgreSQL server, and of every request of a running cluster."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cluster.config.records import RecordsConfig
from deployments.records.batch import Batch
from deployments.records.check import check_database
from deployments.records.reader import RecordsReader, Wanted
from deployments.records.store import RecordStore
from deployments.records.target import target_of
from deployments.records.writer import RecordWriter
from tests.clusters import RunningCluster, simulated_config, start_cluster, stop_cluster
from tests.faults.load import CHAT, chat
from tests.integration.cluster_processes import unused_port, wait_for
from tests.integration.postgres import Postgres
from tests.unit.records.made import record

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
