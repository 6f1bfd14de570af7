"""Pools of experts on a real Ray Serve, below simulated engines: they scale, heal, and serve answers that are checked.

A simulated trunk holds what its pools answer against the weights, and ends if it is wrong; so an answer is proof of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.clusters import RunningCluster, simulated_config, start_cluster, stop_cluster
from tests.faults.load import CHAT, SteadyLoad, chat
from tests.integration.cluster_processes import keeper_of, pool_of, wait_for

QUOTA = 2000
"""Pairs of token and expert a second; a request of 16 tokens takes 128 of them."""
SECOND_REPLICA_S = 10.0


def config(**pools: Any) -> dict[str, Any]:
    made: dict[str, Any] = simulated_config("dense", "moe")
    made["models"]["moe"] |= {
        "kind": "sparse",
        "roles": ["fluency"],
        "engine": {
            "type": "simulated",
            "max_model_len": 2048,
            "max_num_seqs": 32,
            "simulated": {
                "decode_step_base_s": 0.005,
                "experts": {"layers": 4, "experts": 8, "top_k": 2},
            },
        },
        "pools": {
            "count": 2,
            "cpus": 0.1,
            "quota_pairs_per_s": QUOTA,
            "high": 0.5,
            "dwell_s": 2,
            "outage_s": 40,
            **pools,
        },
    }
    made["contracts"] = {
        "fluency": {"max_prompt_tokens": 1024, "max_completion_tokens": 512, "fallback": ["strong"]},
    }
    return made


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    from tests.integration.cluster_processes import unused_port

    started = start_cluster(config(), tmp_path_factory.mktemp("pools"), unused_port())
    yield started
    stop_cluster(started.env)


def view(cluster: RunningCluster) -> dict[str, Any]:
    """As `GET /v1/experts` tells of the pools."""
    with cluster.client() as client:
        told = client.get("/v1/experts").json()
    found: dict[str, Any] = told["models"]["moe"]["pools"] if "moe" in told["models"] else told["silent_pools"]["moe"]
    return found


def pools(cluster: RunningCluster) -> dict[str, dict[str, Any]]:
    """By name."""
    return {pool["name"]: pool for pool in view(cluster)["pools"]}


def changes(cluster: RunningCluster) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = view(cluster)["changes"]
    return found


def answering(cluster: RunningCluster) -> dict[str, int]:
    return {name: len(pool["replicas"]) for name, pool in pools(cluster).items()}


def only_moe(client: httpx.Client) -> httpx.Response:
    """An answer of the model itself, whatever state it is in."""
    return client.post(CHAT, json=chat("moe", 8, pointsman={"allowed_models": ["moe"]}))


def degraded(client: httpx.Client) -> bool:
    told: bool = only_moe(client).json()["pointsman"]["experts"]["pools"]["degraded"]
    return told


def ask(client: httpx.Client, model: str = "moe", tokens: int = 8) -> httpx.Response:
    return client.post(CHAT, json=chat(model, tokens))


def test_an_answer_and_its_trace_tell_of_the_pools(cluster: RunningCluster) -> None:
    with cluster.client() as client:
        answer = ask(client).json()
        told = answer["pointsman"]["experts"]["pools"]
        assert told["degraded"] is False and told["degraded_rows"] == 0
        trace = cluster.pointsman("trace", answer["pointsman"]["trace_id"]).stdout
    assert trace.count("experts.pool") == 2, trace
    shown = cluster.pointsman("experts").stdout
    assert "pool" in shown and "replicas" in shown, shown


def test_a_pool_gains_a_replica_while_it_is_hot_and_loses_it_again(cluster: RunningCluster) -> None:
    assert set(answering(cluster).values()) == {1}
    # About 320 pairs for each request: together as much as a replica of each pool may do.
    with SteadyLoad(cluster, chat("moe", 32), per_s=12) as load:
        wait_for(lambda: max(answering(cluster).values()) == 2, timeout_s=3 * SECOND_REPLICA_S, every_s=0.2)
    assert not load.failed
    gained = [one for one in changes(cluster) if one["cause"] == "hot"]
    assert gained and gained[0]["before"] == 1 and gained[0]["after"] == 2
    wait_for(lambda: changes(cluster)[0]["took_s"] is not None, timeout_s=5)
    assert gained[0]["took_s"] is None or gained[0]["took_s"] < 3 * SECOND_REPLICA_S
    wait_for(lambda: set(answering(cluster).values()) == {1}, timeout_s=60, every_s=0.2)
    assert [one["cause"] for one in changes(cluster)][-1] == "cold"
    with cluster.client() as client:
        assert ask(client).json()["pointsman"]["experts"]["pools"]["degraded"] is False


def test_a_killed_replica_costs_no_request_and_is_replaced(cluster: RunningCluster) -> None:
    with SteadyLoad(cluster, chat("moe", 16), per_s=4) as load:
        time.sleep(1)
        (victim,) = pool_of(cluster, "moe", "0")
        before = victim.pid
        victim.kill()
        wait_for(lambda: [one for one in pool_of(cluster, "moe", "0") if one.pid != before], timeout_s=60)
        with cluster.client() as client:
            wait_for(lambda: not degraded(client), timeout_s=30, every_s=0.2)
        # What pools are there is told twice a second, apart from answers.
        wait_for(lambda: answering(cluster)["0"] == 1, timeout_s=30, every_s=0.2)
    assert not load.failed


def test_the_one_who_decides_may_die(cluster: RunningCluster) -> None:
    with SteadyLoad(cluster, chat("moe", 16), per_s=4) as load:
        before = view(cluster)["version"]
        keeper_of(cluster, "moe").kill()
        wait_for(lambda: view(cluster)["version"] > before, timeout_s=60, every_s=0.2)
        wait_for(lambda: set(answering(cluster).values()) == {1}, timeout_s=30, every_s=0.2)
    assert not load.failed


def test_new_requests_go_to_the_dense_model_while_a_pool_is_away(cluster: RunningCluster) -> None:
    (victim,) = pool_of(cluster, "moe", "1")
    victim.suspend()
    try:
        with cluster.client() as client:
            wait_for(lambda: ask(client, "fluency").json()["pointsman"]["model"] == "dense", timeout_s=30, every_s=0.2)
            answer = ask(client, "fluency")
        assert answer.status_code == 200
        assert "impaired" in answer.json()["pointsman"]["reason"]
        with cluster.client() as client:
            named = only_moe(client)
        assert named.status_code == 200
        assert named.json()["pointsman"]["experts"]["pools"]["degraded"] is True
        assert named.headers["x-pointsman-degraded"] == "experts"
    finally:
        victim.resume()
    with cluster.client() as client:
        wait_for(lambda: ask(client, "fluency").json()["pointsman"]["model"] == "moe", timeout_s=60, every_s=0.2)
        wait_for(lambda: not degraded(client), timeout_s=30, every_s=0.2)


def test_other_pools_take_over_without_a_lost_request(cluster: RunningCluster) -> None:
    changed = yaml.safe_load(cluster.config_path.read_text())
    changed["models"]["moe"]["pools"] |= {"count": 4}
    path = cluster.config_path.with_name("four.yaml")
    path.write_text(yaml.safe_dump(changed))
    with SteadyLoad(cluster, chat("moe", 16), per_s=4) as load:
        applied = cluster.pointsman("config", "apply", str(path))
        assert applied.returncode == 0, applied.stderr
        wait_for(lambda: set(pools(cluster)) == {"0", "1", "2", "3"}, timeout_s=20, every_s=0.2)
    assert not load.failed
    wait_for(lambda: not pool_of(cluster, "moe", "0"), timeout_s=60, every_s=0.5)


@pytest.fixture
def parking(state_dir: Path, free_port: int) -> Iterator[RunningCluster]:
    made = config(idle_s=2, quota_pairs_per_s=None)
    made["models"]["moe"]["replicas"] = {"cpus": 0.1, "min": 2, "max": 2}
    started = start_cluster(made, state_dir, free_port)
    yield started
    stop_cluster(started.env)


def test_pools_that_nobody_uses_are_parked_and_wake(parking: RunningCluster) -> None:
    wait_for(lambda: set(answering(parking).values()) == {0}, timeout_s=60, every_s=0.2)
    with parking.client() as client:
        begun = time.monotonic()
        answer = ask(client).json()
        waited_s = time.monotonic() - begun
    assert answer["pointsman"]["experts"]["pools"]["degraded"] is False, answer
    assert waited_s < 3 * SECOND_REPLICA_S
    assert "invoked" in [one["cause"] for one in changes(parking)]
    # Both replicas of the model share the pools.
    with SteadyLoad(parking, chat("moe", 32), per_s=8) as load:
        wait_for(lambda: len(load.outcomes) >= 16, timeout_s=30)
    assert not load.failed
    with parking.client() as client:
        told = client.get("/v1/experts").json()["models"]["moe"]
        assert len([one for one in told["replicas"] if one["tokens"] > 32]) == 2, told["replicas"]
        assert not degraded(client)
