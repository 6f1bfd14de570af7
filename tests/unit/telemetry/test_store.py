from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deployments.paths import traces_path
from deployments.telemetry.reader import TraceIdError, TraceReader
from deployments.telemetry.spans import SpanEvent, SpanLink
from deployments.telemetry.store import TraceStore
from deployments.telemetry.store_file import KEPT_QUARANTINED, BrokenStoreError, StoreUnavailableError, connect

WRITER = """
import sys
import time
from pathlib import Path
from deployments.telemetry.spans import StoredSpan
from deployments.telemetry.store import TraceStore

store = TraceStore(Path(sys.argv[1]), 100_000)
who = int(sys.argv[2])
for batch in range(40):
    store.write([
        StoredSpan(f"{batch:032x}", f"{who * 1000 + batch * 10 + i:016x}", None, "s", "internal", 1, 2, "ok", "", "p", "i")
        for i in range(5)
    ])
store.close()
"""


def test_a_span_comes_back_as_it_was(store_path, make_span):
    span = make_span(
        2,
        1,
        attributes={"text": "a\ud800b", "list": ("x", "y"), "number": 1.5, "yes": True, "count": 7},
        events=(SpanEvent("first", 5, {"k": 1}),),
        links=(SpanLink("f" * 32, "e" * 16, {"why": "x"}),),
    )
    store = TraceStore(store_path, 1000)
    store.write([make_span(1), span])
    with TraceReader(store_path) as reader:
        _, back = reader.get_trace(f"{1:032x}")
    assert back == span


def test_the_file_is_private_to_the_user(store_path, make_span):
    TraceStore(store_path, 1000).write([make_span(1)])
    assert store_path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("damaged", [False, True])
def test_several_processes_write_at_once(store_path, damaged):
    if damaged:
        store_path.write_bytes(b"no database at all" * 500)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(store_path), str(who)], env=environment) for who in range(4)
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0, 0]
    with TraceReader(store_path) as reader:
        traces = reader.list_traces(limit=100)
        assert len(traces) == 40
        assert {trace.spans for trace in traces} == {20}
        assert len(reader.get_trace(f"{7:032x}")) == 20
    # However many find the damage at once, the file is put aside once.
    assert len(list(store_path.parent.glob("*.broken-*[0-9]"))) == damaged


def test_a_prefix_finds_a_trace_and_an_ambiguous_one_is_named(store_path, make_span):
    store = TraceStore(store_path, 1000)
    store.write([make_span(1, trace_id="ab" + "0" * 30), make_span(1, trace_id="ab" + "1" * 30)])
    with TraceReader(store_path) as reader:
        assert len(reader.get_trace("AB0")) == 1
        assert reader.get_trace("cd") == ()
        with pytest.raises(TraceIdError, match="more of its digits"):
            reader.get_trace("ab")
        for wrong in ("", "xyz", "a' OR 1=1", "a" * 33, "%"):
            with pytest.raises(TraceIdError):
                reader.get_trace(wrong)


def test_traces_are_listed_latest_first_with_root_and_errors(store_path, make_span):
    store = TraceStore(store_path, 1000)
    store.write(
        [make_span(2, 1, trace=1, start_ms=1, status="error"), make_span(1, 99, trace=1, start_ms=0, name="root")]
    )
    store.write([make_span(3, trace=2, start_ms=500)])
    with TraceReader(store_path) as reader:
        second, first = reader.list_traces()
        assert (first.spans, first.errors, first.duration_ns) == (2, 1, 11_000_000)
        assert first.root is not None
        assert first.root.name == "root"
        assert reader.list_traces(limit=1) == (second,)
        assert reader.list_traces(since_ns=first.end_ns) == (second,)


def test_a_missing_file_reads_as_empty_and_is_not_made(store_path):
    with TraceReader(store_path) as reader:
        assert reader.list_traces() == ()
        assert reader.get_trace("ab") == ()
    assert not store_path.exists()


def test_reading_is_possible_while_a_writer_holds_the_file(store_path, make_span):
    TraceStore(store_path, 1000).write([make_span(1)])
    writer = sqlite3.connect(store_path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    with TraceReader(store_path) as reader:
        assert len(reader.list_traces()) == 1
    writer.close()


@pytest.mark.parametrize("damage", ["garbage", "truncated", "page", "foreign", "newer"])
def test_a_damaged_file_is_put_aside_and_a_new_one_begins(store_path, make_span, damage):
    store = TraceStore(store_path, 10_000)
    store.write([make_span(number, trace=number) for number in range(1, 500)])
    store.close()
    data = store_path.read_bytes()
    if damage == "garbage":
        store_path.write_bytes(os.urandom(9000))
    elif damage == "truncated":
        store_path.write_bytes(data[: len(data) // 2])
    elif damage == "page":
        store_path.write_bytes(data[:4096] + os.urandom(8192) + data[12288:])
    else:
        store_path.unlink()
        other = sqlite3.connect(store_path)
        other.execute("CREATE TABLE theirs (a)")
        other.execute(f"PRAGMA user_version = {99 if damage == 'newer' else 0}")
        other.commit()
        other.close()
    store.write([make_span(1, trace=9999)])
    with TraceReader(store_path) as reader:
        assert [trace.trace_id for trace in reader.list_traces()] == [f"{9999:032x}"]
    assert len(list(store_path.parent.glob("traces.sqlite.broken-*[0-9]"))) == 1


def test_only_the_last_few_damaged_files_are_kept(store_path, make_span):
    for _ in range(KEPT_QUARANTINED + 2):
        store_path.write_bytes(b"no database at all" * 500)
        store = TraceStore(store_path, 1000)
        store.write([make_span(1)])
        store.close()
    assert len(list(store_path.parent.glob("traces.sqlite.broken-*[0-9]"))) == KEPT_QUARANTINED


def test_a_writer_follows_a_file_that_was_replaced(store_path, make_span):
    store = TraceStore(store_path, 1000)
    store.write([make_span(1, trace=1)])
    store_path.rename(store_path.with_name("away"))
    store.write([make_span(1, trace=2)])
    with TraceReader(store_path) as reader:
        assert len(reader.list_traces()) == 1


def test_damage_found_while_writing_leads_to_a_new_file(store_path, make_span):
    def forgetful(path: Path, timeout_s: float) -> sqlite3.Connection:
        connection = connect(path, timeout_s)
        # Hardly any page stays in memory, so the damage on disk is seen.
        connection.execute("PRAGMA cache_size = 2")
        return connection

    store = TraceStore(store_path, 10_000, make=forgetful)
    store.write([make_span(number, trace=number) for number in range(1, 2000)])
    store.close()
    store.write([make_span(1, trace=1)])
    with store_path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 65_536)
    for number in range(3000, 3060):
        try:
            store.write([make_span(number, trace=number)])
        except StoreUnavailableError:
            continue
    with TraceReader(store_path) as reader:
        assert reader.list_traces()[0].trace_id
    assert list(store_path.parent.glob("traces.sqlite.broken-*[0-9]"))


def test_a_full_disk_raises_ours_and_heals_itself(store_path, make_span):
    pages = [12]

    def tiny(path: Path, timeout_s: float) -> sqlite3.Connection:
        connection = connect(path, timeout_s)
        connection.execute(f"PRAGMA max_page_count = {pages[0]}")
        return connection

    store = TraceStore(store_path, 100_000, make=tiny)

    def fill() -> None:
        for number in range(5000):
            store.write([make_span(number, trace=number)])

    with pytest.raises(StoreUnavailableError, match=r"SQLITE_FULL.*free some space") as caught:
        fill()
    assert not isinstance(caught.value, BrokenStoreError)
    pages[0] = 10_000
    store.close()
    store.write([make_span(1, trace=77_777)])
    with TraceReader(store_path) as reader:
        assert reader.get_trace(f"{77_777:032x}")


def test_a_locked_store_raises_ours_soon(store_path, make_span):
    store = TraceStore(store_path, 1000, busy_timeout_s=0.05)
    store.write([make_span(1)])
    holder = sqlite3.connect(store_path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreUnavailableError, match="SQLITE_BUSY"):
        store.write([make_span(2)])
    holder.execute("ROLLBACK")
    holder.close()
    store.write([make_span(3)])


def test_an_impossible_place_is_tried_again_only_after_a_while(tmp_path, make_span):
    (tmp_path / "file").write_text("")
    now = [0.0]
    tries = []

    def counting(path: Path, timeout_s: float) -> sqlite3.Connection:
        tries.append(path)
        return connect(path, timeout_s)

    store = TraceStore(tmp_path / "file" / "traces.sqlite", 1000, clock=lambda: now[0], make=counting)
    for _ in range(5):
        with pytest.raises(StoreUnavailableError, match="writable"):
            store.write([make_span(1)])
    (tmp_path / "file").unlink()
    with pytest.raises(StoreUnavailableError):
        store.write([make_span(1)])
    now[0] = 6.0
    store.write([make_span(1)])
    assert len(tries) == 1


def test_the_oldest_traces_leave(store_path, make_span):
    store = TraceStore(store_path, 1000)
    for trace in range(600):
        store.write([make_span(number, trace=trace, start_ms=trace) for number in range(5)])
    with TraceReader(store_path) as reader:
        traces = reader.list_traces(limit=10_000)
        kept = sum(trace.spans for trace in traces)
        assert 800 <= kept <= 1000 + 64 + 5
        assert [trace.trace_id for trace in traces] == [
            f"{number:032x}" for number in range(599, 599 - len(traces), -1)
        ]
        assert all(len(reader.get_trace(trace.trace_id)) == trace.spans == 5 for trace in traces[-3:])


def test_one_endless_trace_is_bounded_too(store_path, make_span):
    store = TraceStore(store_path, 1000)
    for batch in range(30):
        store.write([make_span(batch * 100 + number, start_ms=batch * 100 + number) for number in range(100)])
    with TraceReader(store_path) as reader:
        (trace,) = reader.list_traces()
        spans = reader.get_trace(trace.trace_id)
        assert 800 <= len(spans) <= 1100
        assert spans[-1].span_id == f"{2999:016x}"
        assert trace.spans == len(spans)


ENDLESS = """
import itertools, sys
from pathlib import Path
from deployments.telemetry.spans import StoredSpan
from deployments.telemetry.store import TraceStore

store = TraceStore(Path(sys.argv[1]), 5000)
for batch in itertools.count():
    store.write([
        StoredSpan(f"{batch:032x}", f"{number:016x}", None, "s", "internal", batch, batch + 1, "ok", "", "p", "i")
        for number in range(20)
    ])
    if batch == 20:
        print("writing", flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_whole_transactions(store_path, make_span):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for wait_s in (0.0, 0.03, 0.1):
        with subprocess.Popen(
            [sys.executable, "-c", ENDLESS, str(store_path)], env=environment, stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "writing\n"
            time.sleep(wait_s)
            writer.kill()
        store = TraceStore(store_path, 5000)
        store.write([make_span(1, trace=10**9)])
        store.close()
        with TraceReader(store_path) as reader:
            assert {trace.spans for trace in reader.list_traces(limit=5000)} <= {1, 20}
    assert not list(store_path.parent.glob("*.broken-*"))


# The kernel refuses to let any file grow past 200 KB, as a full disk would.
FULL_DISK = """
import json, resource, sys
from pathlib import Path
from cluster.config.operations import TelemetryConfig
from deployments.telemetry.setup import setup_telemetry

telemetry = setup_telemetry("ingress", TelemetryConfig(), Path(sys.argv[1]), environ={}, set_global=False)
telemetry.tracer.start_span("before").end()
telemetry.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
for number in range(3000):
    telemetry.tracer.start_span("during", attributes={"text": "x" * 1000}).end()
    if number % 100 == 0:
        telemetry.flush()
telemetry.close()
counts = telemetry.counts()
print(json.dumps([counts.exported, counts.queue_full, counts.export_failed]))
"""


def test_no_more_room_on_the_disk_costs_spans_and_nothing_else(state_dir):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", FULL_DISK, str(state_dir)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    exported, queue_full, failed = json.loads(done.stdout)
    assert exported + queue_full + failed == 3001
    assert failed > 1000
    store = TraceStore(traces_path(state_dir), 100_000)
    store.close()
    with TraceReader(traces_path(state_dir)) as reader:
        assert len(reader.list_traces(limit=5000)) == exported
    assert not list(state_dir.glob("*.broken-*"))
