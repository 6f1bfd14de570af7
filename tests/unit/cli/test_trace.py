from __future__ import annotations

import json
import threading
import time

import pytest
from typer.testing import CliRunner

from deployments.cli.app import app
from deployments.paths import traces_path
from deployments.telemetry.spans import StoredSpan
from deployments.telemetry.store import TraceStore


def make(trace: str, span: str, parent: str | None, name: str, age_s: float = 60.0) -> StoredSpan:
    start = time.time_ns() - int((age_s + 1) * 1e9)
    kind = "internal" if parent else "server"
    return StoredSpan(trace, span, parent, name, kind, start, start + 10**9, "unset", "", "ingress", "i")


@pytest.fixture
def store(state_dir):
    store = TraceStore(traces_path(state_dir), 1000)
    yield store
    store.close()


OLD, NEW = "1a" * 16, "2b" * 16


@pytest.fixture
def two_traces(store):
    store.write([make(OLD, "0" * 15 + "1", None, "chat"), make(OLD, "0" * 15 + "2", "0" * 15 + "1", "route")])
    store.write([make(NEW, "0" * 15 + "3", None, "embeddings", age_s=30)])


def test_a_trace_is_drawn_by_the_first_digits_of_its_id(invoke, two_traces):
    done = invoke("trace", "1a")
    assert done.exit_code == 0, done.output
    assert "chat" in done.stdout
    assert "route" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_the_newest(invoke, two_traces):
    assert "embeddings" in invoke("trace", "--last").stdout
    assert json.loads(invoke("trace", "--last", "--json").stdout)["trace_id"] == NEW


def test_the_list(invoke, two_traces):
    done = invoke("trace")
    assert done.stdout.index(NEW) < done.stdout.index(OLD)
    assert [trace["trace_id"] for trace in json.loads(invoke("trace", "--json", "-n", "1").stdout)] == [NEW]


def test_the_hint_below_the_list_leads_to_the_same_store(two_traces, state_dir):
    done = CliRunner().invoke(app, ["trace", "--state-dir", str(state_dir)])
    assert f"`pointsman trace ID --state-dir {state_dir}` draws one" in " ".join(done.stderr.split())


def test_a_trace_that_is_not_there_yet_is_waited_for(invoke, store):
    late = threading.Timer(0.5, lambda: store.write([make(NEW, "0" * 15 + "3", None, "late")]))
    late.start()
    done = invoke("trace", NEW)
    late.join()
    assert done.exit_code == 0, done.output
    assert "late" in done.stdout


def test_a_fresh_trace_is_read_when_all_of_it_is_there(invoke, store):
    store.write([make(NEW, "0" * 15 + "3", None, "first", age_s=0)])
    late = threading.Timer(0.4, lambda: store.write([make(NEW, "0" * 15 + "4", "0" * 15 + "3", "second", age_s=0)]))
    late.start()
    done = invoke("trace", NEW)
    late.join()
    assert "second" in done.stdout


def test_ids_that_lead_nowhere(invoke, two_traces, monkeypatch):
    monkeypatch.setattr("deployments.cli.commands.trace.WAIT_S", 0.2)
    assert invoke("trace", "not-hex").exit_code == 2
    done = invoke("trace", "ff")
    assert done.exit_code == 1
    assert "there is no trace ff" in done.stderr


def test_an_empty_store(invoke):
    done = invoke("trace")
    assert done.exit_code == 0
    assert "no traces" in done.stdout
    assert invoke("trace", "--last").exit_code == 1
    assert json.loads(invoke("trace", "--json").stdout) == []
