"""What the processes of a real cluster log: lines that a program can read, with the trace that each belongs to and no prompt."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.telemetry import names
from deployments.paths import logs_path
from tests.clusters import RunningCluster, simulated_config, start_cluster, stop_cluster
from tests.faults.load import CHAT
from tests.integration.cluster_processes import (
    all_of,
    ingress_of,
    keeper_of,
    pool_of,
    replicas_of,
    state_of,
    unused_port,
    wait_for,
)

pytestmark = pytest.mark.timeout(300)

WORD = f"canary{secrets.token_hex(6)}"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
ASKED = 4
LEVELS = {"debug", "info", "warning", "error", "critical"}


def config() -> dict[str, Any]:
    made: dict[str, Any] = simulated_config("dense", "moe")
    made["models"]["dense"]["engine"]["simulated"] = {"decode_step_base_s": 0.02, "prefill_tokens_per_s": 40}
    made["models"]["dense"]["replicas"] |= {"min": 2, "max": 2}
    moe = made["models"]["moe"]
    moe["kind"] = "sparse"
    moe["engine"]["simulated"] = {"experts": {"layers": 4, "experts": 8, "top_k": 2}}
    moe["pools"] = {"count": 2, "cpus": 0.1}
    made["telemetry"] = {"log_level": "debug"}
    made["keys"] = {"required": False}
    return made


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    started = start_cluster(config(), tmp_path_factory.mktemp("logs") / "state", unused_port())
    yield started
    stop_cluster(started.env)


def chat(model: str, **more: Any) -> dict[str, Any]:
    said = [{"role": "system", "content": WORD}, {"role": "user", "content": f"{WORD} {WORD}"}]
    return {"model": model, "messages": said, "max_tokens": 8, "user": WORD, "stop": [WORD], **more}


def lines_of(cluster: RunningCluster) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in sorted(logs_path(cluster.state_dir).glob("*.jsonl*"))
        for line in path.read_text().splitlines()
    ]


def logging_processes(cluster: RunningCluster) -> dict[str, list[psutil.Process]]:
    """All that have a log of their own, by what its file is called after."""
    return {
        "head": [psutil.Process(state_of(cluster).pid)],
        "ingress": [ingress_of(cluster)],
        "replica-dense": replicas_of(cluster, "dense"),
        "replica-moe": replicas_of(cluster, "moe"),
        "pool-moe-0": pool_of(cluster, "moe", "0"),
        "pool-moe-1": pool_of(cluster, "moe", "1"),
        "pools-moe": [keeper_of(cluster, "moe")],
    }


def test_what_is_logged_while_a_request_is_served_names_its_trace(cluster: RunningCluster) -> None:
    """A replica dies under requests, which the ingress notes before it tries another one."""
    trace_id = secrets.token_hex(16)
    headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
    with cluster.client() as client:
        wait_for(lambda: client.get("/readyz").json()["models"]["dense"]["replicas"] == 2, 60.0)

        # One for each replica and more. The prompt takes the engine a while, so nothing has been sent when one dies.
        with ThreadPoolExecutor(ASKED) as pool:
            asked = [pool.submit(client.post, CHAT, json=chat("dense"), headers=headers) for _ in range(ASKED)]
            time.sleep(0.3)
            replicas_of(cluster, "dense")[0].kill()
            answers = [one.result() for one in asked]
        for answer in answers:
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-pointsman-trace-id"] == trace_id
        wait_for(lambda: client.get("/readyz").json()["models"]["dense"]["replicas"] == 2, 60.0)
    line = next(line for line in lines_of(cluster) if "replica lost" in line["message"])
    assert (line["level"], line["process"], line["logger"]) == ("warning", "ingress", "deployments.ingress.dispatch")
    assert line["trace_id"] == trace_id
    assert re.fullmatch("[0-9a-f]{16}", line["span_id"])
    # The same as the trace says it.
    shown = json.loads(cluster.pointsman("trace", trace_id, "--json").stdout)
    assert line["span_id"] in json.dumps(shown)


def test_every_line_of_every_process_can_be_read_by_a_program(cluster: RunningCluster) -> None:
    by_process: dict[str, int] = {}
    for line in lines_of(cluster):
        assert TIME.fullmatch(line["time"])
        assert line["level"] in LEVELS
        assert all(isinstance(line[name], str) for name in ("process", "logger", "message"))
        assert ("trace_id" in line) == ("span_id" in line)
        # Fields are flat, so that no store of logs needs to know their form.
        assert all(not isinstance(value, dict) for value in line.values())
        by_process[line["process"]] = by_process.get(line["process"], 0) + 1
    # Each says at least that it serves.
    assert set(by_process) == set(logging_processes(cluster))


def test_what_was_said_is_in_no_file_of_any_process(cluster: RunningCluster) -> None:
    refused = [
        (chat("dense", temperature=WORD), 400),
        (chat("dense", **{WORD: WORD}), 400),
        (chat("dense", messages=[{"role": WORD, "content": WORD}]), 400),
        (chat("dense", messages=[{"role": "user", "content": f"{WORD} " * 3000}]), 400),
        (chat(WORD), 404),
    ]
    answered = [chat("dense"), chat("dense", stream=True), chat("moe"), chat("moe", stream=True), chat("auto")]
    with cluster.client() as client:
        for body, status in (*((body, 200) for body in answered), *refused):
            answer = client.post(CHAT, json=body, headers={"baggage": f"a={WORD}", "user-agent": WORD})
            assert answer.status_code == status, (body, answer.text)
        # And what a process says when it ends by itself.
        for process in pool_of(cluster, "moe", "0"):
            process.terminate()
        assert client.post(CHAT, json=chat("moe")).status_code == 200
    time.sleep(2.0)
    processes = logging_processes(cluster)
    assert all(processes.values()), processes
    folders = (cluster.state_dir, Path(state_of(cluster).ray_temp_dir))
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 20
    for path in files:
        assert WORD.encode() not in path.read_bytes(), path
    for process in all_of(cluster):
        assert WORD not in " ".join(process.cmdline())


def test_files_are_for_their_owner_alone(cluster: RunningCluster) -> None:
    assert logs_path(cluster.state_dir).stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in logs_path(cluster.state_dir).iterdir())


def test_what_may_be_written_as_it_is_are_identifiers_alone() -> None:
    """No field whose text a caller chooses is among those that pass."""
    assert not names.LOG_IDENTIFIERS & {
        "user",
        "metadata",
        "prompt",
        "content",
        "messages",
        "stop",
        "name",
        "path",
        "url",
    }
