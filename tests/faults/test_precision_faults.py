"""The precision ladder on a real cluster: requests live through a change, and an engine that is killed in one is replaced."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.telemetry import names
from deployments.paths import traces_path
from deployments.telemetry.reader import TraceReader
from tests.clusters import RunningCluster
from tests.faults.load import CHAT, Streamed, chat
from tests.integration.cluster_processes import engine_of, wait_for

pytestmark = [pytest.mark.timeout(500), pytest.mark.fp8_kv]

MODEL = "dense"
REPLACED_S = 200.0
"""Loading a model anew, on a machine that may be busy."""
NO_HANG_S = 3 * 5.0
"""Three times the time within which a stream whose engine is gone has to end."""


@pytest.fixture
def whole(running_cluster: RunningCluster) -> Iterator[RunningCluster]:
    """The cluster with all models ready and none pinned; it is left so, too."""
    running_cluster.wait_ready(REPLACED_S)
    yield running_cluster
    running_cluster.wait_ready(REPLACED_S)
    # Pressure would take it back up a level at a time.
    pin(running_cluster, "normal")
    wait_for(lambda: replica(running_cluster)["kv_precision"] == "bfloat16", 30.0)
    done = running_cluster.pointsman("precision", "release", MODEL)
    assert done.returncode == 0, done.stderr


def replica(cluster: RunningCluster) -> dict[str, Any]:
    """What the cluster says of the model's only replica."""
    with cluster.client() as client:
        (found,) = client.get("/v1/precision").json()["models"][MODEL]["replicas"]
    return dict(found)


def pin(cluster: RunningCluster, level: str) -> None:
    done = cluster.pointsman("precision", "pin", MODEL, level)
    assert done.returncode == 0, done.stderr


def told(stream: Streamed) -> dict[str, Any]:
    """What the comment at the end of a stream says."""
    (comment,) = (event for event in stream.events if event.startswith(": pointsman "))
    found: dict[str, Any] = json.loads(comment.removeprefix(": pointsman "))
    return found


def test_requests_live_through_a_change_and_their_trace_says_so(whole: RunningCluster) -> None:
    before = replica(whole)
    assert before["kv_blockers"] == []
    assert before["kv_precision"] == "bfloat16"
    streams = [Streamed(whole, chat(MODEL, 160, ignore_eos=True)) for _ in range(4)]
    wait_for(lambda: all(stream.texts > 3 for stream in streams), 60.0)
    pin(whole, "fp8_kv")
    wait_for(lambda: replica(whole)["kv_precision"] == "fp8", 30.0)
    for stream in streams:
        stream.join()
        assert stream.done
    lived = [told(stream) for stream in streams]
    assert [one["kv"]["switches"] for one in lived] == [1, 1, 1, 1]
    assert all(one["kv"]["recomputed_tokens"] > 0 and one["precision"]["kv"] == "fp8" for one in lived)
    after = replica(whole)
    assert after["kv_blocks"] >= 2 * before["kv_blocks"] - 2
    assert after["forced_preemptions"] == before["forced_preemptions"] + 4
    with whole.client() as client:
        answer = client.post(CHAT, json=chat(MODEL, 4))
        metrics = client.get("/metrics").text
    assert answer.headers["x-pointsman-level"] == "2 fp8_kv"
    assert "kv=fp8" in answer.headers["x-pointsman-precision"]
    assert f'pointsman_precision_level{{model="{MODEL}",replica="{after["id"]}"}} 2.0' in metrics
    assert f'pointsman_kv_precision_info{{model="{MODEL}",precision="fp8",replica="{after["id"]}"}} 1.0' in metrics

    def events() -> list[str]:
        with TraceReader(traces_path(whole.state_dir)) as reader:
            spans = reader.get_trace(lived[0]["trace_id"])
        return [event.name for span in spans if span.name == names.SPAN_REPLICA for event in span.events]

    wait_for(lambda: names.EVENT_KV_SWITCH in events(), 10.0)
    drawn = whole.pointsman("trace", lived[0]["trace_id"])
    assert names.EVENT_KV_SWITCH in drawn.stdout
    wait_for(lambda: "fp8" in whole.pointsman("precision", "timeline", "--model", MODEL).stdout, 10.0)
    rows = json.loads(whole.pointsman("precision", "timeline", "--model", MODEL, "--json").stdout)["changes"]
    change = next(row for row in rows if row["replica"] == after["id"] and row["kv_after"] == "fp8")
    assert (change["cause"], change["preempted"], change["error"]) == ("pinned", 4, None)
    shown = whole.pointsman("precision")
    assert "fp8_kv" in shown.stdout
    assert "pinned" in shown.stdout


def test_an_engine_that_is_killed_in_the_middle_of_a_change_is_replaced_and_nothing_hangs(
    whole: RunningCluster,
) -> None:
    engine, before = engine_of(whole, MODEL), replica(whole)
    stream = Streamed(whole, chat(MODEL, 400, ignore_eos=True))
    wait_for(lambda: stream.texts > 3, 60.0)
    # It does not get on with the order, so the change is under way when it is killed.
    engine.suspend()
    pin(whole, "fp8_kv")
    killed = time.monotonic()
    engine.kill()
    stream.join()
    assert stream.ended_at is not None
    assert stream.ended_at - killed < NO_HANG_S
    assert not stream.done
    whole.wait_ready(REPLACED_S)

    def held() -> bool:
        found = replica(whole)
        return found["id"] != before["id"] and found["level"] == 2 and found["kv_precision"] == "fp8"

    # The new one is told what the operator has pinned.
    wait_for(held, 30.0)
    with whole.client() as client:
        answer = client.post(CHAT, json=chat(MODEL, 4))
    assert (answer.status_code, answer.headers["x-pointsman-model"]) == (200, MODEL)
