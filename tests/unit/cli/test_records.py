from __future__ import annotations

import json
import time

import pytest

from cluster.config.records import RecordsConfig
from cluster.cost import RequestCost
from cluster.records.replica_time import ReplicaBucket, ReplicaSeconds
from deployments.paths import records_path
from deployments.records.batch import Batch, Loss
from deployments.records.store import RecordStore
from deployments.records.target import target_of
from tests.unit.records.made import cost, record

TRAIL = [
    {"model": "mini", "confidence": 0.1, "seconds": 0.5, "outcome": "requeried", "why": "confidence 0.10 is below 0.6"},
    {"model": "dense", "confidence": 0.8, "seconds": 1.5, "outcome": "accepted", "why": "confidence 0.80 is enough"},
]


@pytest.fixture
def stored(state_dir):
    now = time.time()
    external = RequestCost((cost("hosted", seconds=3.0, money=0.125),))
    records = (
        record(request_id="first", at=now - 7200, model="mini", rule="code", tenant=""),
        record(request_id="judged", at=now - 60, trail=TRAIL, confidence=0.8, trace_id="cd" * 16),
        record(request_id="lost", at=now - 30, status=503, error="no_replica", cost=external, model="hosted"),
    )
    bucket = ReplicaBucket(int(now // 60), "dense", ReplicaSeconds(busy=1.0, idle=3.0))
    store = RecordStore(target_of(RecordsConfig(), state_dir), "ingress-1")
    store.write(Batch(records, (bucket,), (Loss("a" * 32, now, "queue_full", 7),)))
    store.close()


def ids(done) -> list[str]:
    assert done.exit_code == 0, done.output
    return [row["request_id"] for row in json.loads(done.stdout)["records"]]


def test_records_are_listed_newest_first_and_what_is_missing_is_said(invoke, stored):
    done = invoke("records")
    assert done.exit_code == 0, done.output
    assert done.stdout.index("lost") < done.stdout.index("judged") < done.stdout.index("first")
    assert "7 (queue_full)" in done.stderr
    assert json.loads(invoke("records", "--json").stdout)["lost"] == {"queue_full": 7}


def test_records_are_found_by_options(invoke, stored):
    assert ids(invoke("records", "--json", "--model", "mini")) == ["first"]
    assert ids(invoke("records", "--json", "--reason", "code")) == ["first"]
    assert ids(invoke("records", "--json", "--since", "10m")) == ["lost", "judged"]
    assert ids(invoke("records", "--json", "--failed")) == ["lost"]
    assert ids(invoke("records", "--json", "-n", "1")) == ["lost"]
    assert ids(invoke("records", "--json", "--tenant", "acme")) == ["lost", "judged"]
    assert ids(invoke("records", "--json", "--since", "2000-01-01")) == ["lost", "judged", "first"]


@pytest.mark.parametrize("given", ["judged", "judge", "cd" * 16, "cdcd"])
def test_one_is_shown_with_its_trail(invoke, stored, given):
    done = invoke("records", given)
    assert done.exit_code == 0, done.output
    for words in (
        "confidence 0.10 is below 0.6",
        "accepted",
        "nothing speaks for another role",
        "compute auto, KV fp8",
    ):
        assert words in done.stdout
    assert "code (lexical)" in done.stdout
    (row,) = json.loads(invoke("records", given, "--json").stdout)
    assert [step["outcome"] for step in row["trail"]] == ["requeried", "accepted"]
    assert {one["model"]: one["engine_seconds"] for one in row["models"]} == {"dense": 2.0, "mini": 0.5}


def test_costs_by_model_rule_and_tenant(invoke, stored):
    found = json.loads(invoke("cost", "--json").stdout)
    by_model = {row["model"]: row for row in found["by_model"]}
    assert (by_model["hosted"]["cost"], by_model["dense"]["engine_seconds"]) == (0.125, 4.0)
    assert {row["rule"]: row["requests"] for row in found["by_rule"]} == {"default": 2, "code": 1}
    assert {row["tenant"]: row["cost"] for row in found["by_tenant"]} == {"acme": 0.125, "": 0.0}
    assert found["replicas"] == {"dense": {"busy_s": 1.0, "idle_s": 3.0}}
    since = json.loads(invoke("cost", "--json", "--since", "10m").stdout)
    assert {row["model"]: row["requests"] for row in since["by_model"]} == {"dense": 1, "mini": 1, "hosted": 1}
    done = invoke("cost")
    assert done.exit_code == 0, done.output
    dense = next(line.split() for line in done.stdout.splitlines() if line.startswith("dense") and "%" in line)
    # Idle for 3 of 4 seconds; 4 engine-seconds in the busy one.
    assert dense == ["dense", "1", "3", "75%", "4.0"]


def test_where_there_is_nothing(invoke, state_dir):
    assert "no such records" in invoke("records").stdout
    assert "no records yet" in invoke("cost").stdout
    done = invoke("records", "nobody")
    assert (done.exit_code, "no record of nobody" in done.stderr) == (1, True)
    assert not records_path(state_dir).exists()


def test_a_time_that_is_none(invoke):
    for wrong in ("yesterday", "5 weeks", "-3h", ""):
        done = invoke("records", "--since", wrong)
        assert done.exit_code == 2, wrong
        assert "is no time" in done.stderr


def test_a_file_that_is_no_database(invoke, state_dir):
    records_path(state_dir).write_bytes(b"no database " * 1000)
    done = invoke("records")
    assert done.exit_code == 1
    assert "records.sqlite" in done.stderr and "SQLITE_NOTADB" in done.stderr
