"""Real engines that are killed and stopped under a running cluster, and a model that does not load."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from deployments.models.sources import resolve
from deployments.processes import process_state
from tests.clusters import RunningCluster, cluster_environment, run_pointsman, simulated_config, stop_cluster
from tests.faults.load import CHAT, SteadyLoad, Streamed, chat
from tests.integration.cluster_processes import engine_of, is_engine, replicas_of, title, unused_port, wait_for

pytestmark = pytest.mark.timeout(500)

OUT_OF_ROUTING_S = 3 * 5.0
REFUSED_S = 3 * 0.1
ERROR_S = 3 * 2.0
"""Goals, three times each."""
REPLACED_S = 200.0
"""Loading a model anew, on a machine that may be busy."""


@pytest.fixture
def whole(running_cluster: RunningCluster) -> Iterator[RunningCluster]:
    """The cluster with all models ready; it is left so, too."""
    running_cluster.wait_ready(REPLACED_S)
    yield running_cluster
    running_cluster.wait_ready(REPLACED_S)


def is_ready(cluster: RunningCluster, model: str) -> bool:
    with cluster.client(timeout_s=5.0) as client:
        found: bool = client.get("/readyz").json()["models"][model]["ready"]
    return found


def gone(pid: int) -> bool:
    return process_state(pid) in (None, "Z")


def test_a_killed_engine_costs_one_request_at_most(whole: RunningCluster) -> None:
    """The role `code` has the sparse model, and others to fall back on. One caller asks on and on."""
    engine, (replica,) = engine_of(whole, "sparse"), replicas_of(whole, "sparse")
    stream = Streamed(whole, chat("sparse", 400, ignore_eos=True))
    wait_for(lambda: stream.texts > 3, 30.0)
    statuses: list[int] = []
    served_by: set[str] = set()
    with whole.client(timeout_s=60.0) as client:

        def ask() -> None:
            answer = client.post(CHAT, json=chat("code", 4))
            statuses.append(answer.status_code)
            served_by.add(answer.headers.get("x-pointsman-model", ""))

        ask()
        killed = time.monotonic()
        engine.kill()
        while is_ready(whole, "sparse"):
            ask()
            assert time.monotonic() - killed < OUT_OF_ROUTING_S
        for _ in range(5):
            ask()
        direct = client.post(CHAT, json=chat("mini", 4))
        assert direct.status_code == 200
    stream.join()
    assert sum(status != 200 for status in statuses) <= 1, statuses
    assert served_by >= {"sparse", "dense"}
    # What had begun says that it is not whole.
    assert not stream.done
    assert stream.error is not None
    assert stream.ended_at is not None
    assert stream.ended_at - killed < ERROR_S
    wait_for(lambda: gone(replica.pid), 10.0)
    wait_for(lambda: is_ready(whole, "sparse"), REPLACED_S, every_s=0.5)
    assert engine_of(whole, "sparse").pid != engine.pid
    with whole.client() as client:
        assert client.post(CHAT, json=chat("sparse", 4)).status_code == 200


def test_a_stopped_engine_is_replaced(whole: RunningCluster) -> None:
    """The mini model has no fallback: its callers are told to come back, at once, and the others notice nothing."""
    engine = engine_of(whole, "mini")
    with SteadyLoad(whole, chat("dense", 4), per_s=2, timeout_s=60.0) as others:
        waiting = Streamed(whole, chat("mini", 400, ignore_eos=True))
        wait_for(lambda: waiting.texts > 3, 30.0)
        stopped = time.monotonic()
        engine.suspend()
        wait_for(lambda: not is_ready(whole, "mini"), OUT_OF_ROUTING_S)
        with whole.client(timeout_s=60.0) as client:
            began = time.monotonic()
            refused = client.post(CHAT, json=chat("mini", 4))
            assert time.monotonic() - began < REFUSED_S
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        waiting.join()
        assert waiting.error is not None
        assert not waiting.done
        assert waiting.ended_at is not None
        assert waiting.ended_at - stopped < OUT_OF_ROUTING_S + ERROR_S
        # It cannot be left stopped for ever: it is ended with its replica.
        wait_for(lambda: gone(engine.pid), 10.0)
        wait_for(lambda: is_ready(whole, "mini"), REPLACED_S, every_s=0.5)
    assert others.failed == []
    with whole.client() as client:
        assert client.post(CHAT, json=chat("mini", 4)).status_code == 200


def test_a_killed_replica_takes_its_engine_with_it(whole: RunningCluster) -> None:
    engine, (replica,) = engine_of(whole, "mini"), replicas_of(whole, "mini")
    helpers = [process.pid for process in replica.children(recursive=True)]
    assert engine.pid in helpers
    replica.kill()
    wait_for(lambda: all(gone(pid) for pid in helpers), 5.0)
    wait_for(lambda: not is_ready(whole, "mini"), OUT_OF_ROUTING_S)
    wait_for(lambda: is_ready(whole, "mini"), REPLACED_S, every_s=0.5)
    assert len(replicas_of(whole, "mini")) == 1


@pytest.fixture
def broken_model(tmp_path: Path) -> Path:
    """A folder that looks like a model until its weights are read."""
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["NoSuchModel"], "model_type": "no_such_model"}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\0" * 64)
    return folder


@pytest.fixture
def torn_model(tmp_path: Path) -> Path:
    """The dense model with half of its weights: it fails where they are read, in the engine's own process."""
    folder = tmp_path / "torn"
    shutil.copytree(resolve("embedded:dense", None, lambda _message, _done: None), folder)
    for weights in folder.glob("*.safetensors"):
        os.truncate(weights, weights.stat().st_size // 2)
    return folder


def test_one_model_that_does_not_load_leaves_the_others_serving(
    state_dir: Path, broken_model: Path, torn_model: Path, tmp_path: Path
) -> None:
    port = unused_port()
    config = simulated_config("alpha") | {"ingress": {"port": port}}
    models = config["models"]
    assert isinstance(models, dict)
    for name, folder in (("broken", broken_model), ("torn", torn_model), ("lost", tmp_path / "nowhere")):
        models[name] = {
            "kind": "dense",
            "roles": [f"role_{name}"],
            "source": f"path:{folder}",
            "engine": {"max_model_len": 512, "kv_cache_bytes": 64 * 2**20, "enforce_eager": True},
            "replicas": {"cpus": 0.1},
        }
    path = state_dir / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    env = cluster_environment(state_dir, port)
    cluster = RunningCluster(f"http://127.0.0.1:{port}", state_dir, path, env)
    try:
        up = run_pointsman("up", "--config", str(path), env=env, timeout_s=300)
        assert up.returncode == 0, up.stderr
        for name in ("broken", "torn", "lost"):
            assert name in up.stderr
        with cluster.client() as client:
            assert client.post(CHAT, json=chat("alpha", 4)).status_code == 200
            for name in ("broken", "torn", "lost"):
                refused = client.post(CHAT, json=chat(name, 4))
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_unavailable")
            ready = client.get("/readyz")
            assert ready.status_code == 503
            states = ready.json()["models"]
            assert states["alpha"]["ready"] is True
            for name in ("broken", "torn", "lost"):
                assert states[name]["ready"] is False
                assert states[name]["reason"]
        status = cluster.status()
        assert status["phase"] == "degraded"
        told = status["models"]
        assert isinstance(told, dict)
        assert told["alpha"]["phase"] == "ready"
        assert told["broken"]["phase"] == told["torn"]["phase"] == told["lost"]["phase"] == "failed"
        # The reason is the cause, not only that something failed.
        assert "no_such_model" in told["broken"]["message"], told["broken"]["message"]
        assert "cannot be had" in told["lost"]["message"], told["lost"]["message"]
        assert "broken" in cluster.pointsman("status").stdout
        # Nothing of the failed ones stays in memory.
        children = psutil.Process(int(str(status["pid"]))).children(recursive=True)
        assert [title(p) for p in children if is_engine(p)] == []
    finally:
        stop_cluster(env)
