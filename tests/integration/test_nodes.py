"""A cluster over several Ray nodes of this machine: load moves to a node that joins, and a node that is lost costs no request.

The tests run in this order, each from where the last one left it. The first node has Ray's head and the ingress.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from cluster.telemetry import metric_table
from deployments.pools.spec import pools_folder
from tests.clusters import RunningCluster, simulated_config, start_cluster, stop_cluster
from tests.faults.load import CHAT, Outcome, SteadyLoad, chat
from tests.integration.cluster_processes import POOL, REPLICA, title, unused_port, wait_for
from tests.integration.ray_nodes import RayNode, RayNodes
from tests.integration.test_sockets import is_loopback, open_to

pytestmark = pytest.mark.timeout(300)

PER_S = 8.0
TOKENS = 40
"""Of an answer; at 20 ms each, about as many requests are under way at a time as come in a second."""

NOTICED_S = 0.25
"""Seconds for which a request may still be sent to a node that is gone."""


def config(address: str) -> dict[str, Any]:
    """The first node has room for one replica of `alpha`, and for one of the pool of `moe`."""
    made: dict[str, Any] = simulated_config("alpha", "moe")
    alpha, moe = made["models"]["alpha"], made["models"]["moe"]
    alpha["engine"]["simulated"] = {"decode_step_base_s": 0.02}
    alpha["replicas"] = {"min": 1, "max": 1, "cpus": 1, "drain_timeout_s": 10}
    moe["kind"] = "sparse"
    moe["engine"]["simulated"] = {"experts": {"layers": 4, "experts": 8, "top_k": 2}, "decode_step_base_s": 0.005}
    moe["pools"] = {"count": 1, "min": 2, "max": 2, "cpus": 0.5}
    made["ray"] = {"address": address, "health_check_period_s": 1, "health_check_timeout_s": 3}
    return made


@dataclass
class Placed:
    """The cluster, and the nodes that it is on."""

    nodes: RayNodes
    first: RayNode
    cluster: RunningCluster
    config: dict[str, Any]
    joined: list[RayNode] = field(default_factory=list)

    def join(self, cpus: int) -> RayNode:
        self.joined.append(self.nodes.add(cpus))
        return self.joined[-1]

    def where(self, name: str) -> list[RayNode]:
        """The node of each process whose title begins so."""
        nodes = [self.first, *self.joined]
        return [node for node in nodes for process in node.processes() if title(process).startswith(name)]

    def replicas(self) -> list[RayNode]:
        return self.where(REPLICA.format(model="alpha"))

    def ready(self, model: str = "alpha") -> int:
        with self.cluster.client() as client:
            return int(client.get("/readyz").json()["models"][model]["replicas"])

    def apply(self) -> dict[str, str]:
        """How each changed field came into force."""
        path = self.cluster.state_dir / "next.yaml"
        path.write_text(yaml.safe_dump(self.config))
        done = self.cluster.pointsman("config", "apply", str(path), "--json", timeout_s=200)
        assert done.returncode == 0, done.stderr
        return {change["path"]: change["how"] for change in json.loads(done.stdout)["changes"]}

    def generated(self) -> dict[str, float]:
        """Tokens by replica of `alpha`, since it started."""
        with self.cluster.client() as client:
            text = client.get("/metrics").text
        return {
            sample.labels["replica"]: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == metric_table.ENGINE_GENERATED_TOKENS.name and sample.labels["model"] == "alpha"
        }

    def pool_replicas(self) -> int:
        with self.cluster.client() as client:
            told = client.get("/v1/experts").json()
        view = told["models"]["moe"]["pools"] if "moe" in told["models"] else told["silent_pools"]["moe"]
        return len(view["pools"][0]["replicas"])

    def ask_moe(self) -> dict[str, Any]:
        with self.cluster.client() as client:
            answer = client.post(CHAT, json=chat("moe", 8))
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()["pointsman"]["experts"]["pools"]
        return told


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Placed]:
    with RayNodes() as nodes:
        first = nodes.add(2)
        made = config(first.address)
        started = start_cluster(made, tmp_path_factory.mktemp("nodes") / "state", unused_port())
        yield Placed(nodes, first, started, made)
        stop_cluster(started.env)


def under_way(load: SteadyLoad, began: float, ended: float) -> list[Outcome]:
    """Requests that were served at some time between two moments."""
    return [one for one in load.outcomes if one.began <= ended and one.began + one.seconds >= began]


def test_load_moves_to_a_node_that_joins(placed: Placed) -> None:
    assert placed.replicas() == [placed.first]
    joined = placed.join(2)
    placed.config["models"]["alpha"]["replicas"] |= {"min": 2, "max": 2}
    with SteadyLoad(placed.cluster, chat("alpha", TOKENS), PER_S) as load:
        assert set(placed.apply().values()) == {"scale"}
        wait_for(lambda: placed.ready() == 2, 60.0)
        before = placed.generated()
        time.sleep(4.0)
        after = placed.generated()
    assert load.failed == []
    assert placed.replicas() == [placed.first, joined]
    moved = sorted(after[name] - before.get(name, 0.0) for name in after)
    assert len(moved) == 2
    # Neither has less than a quarter of the work.
    assert moved[0] > sum(moved) / 4, moved


def test_a_pool_has_replicas_on_both_nodes_and_a_trunk_uses_both(placed: Placed) -> None:
    wait_for(lambda: placed.pool_replicas() == 2, 60.0)
    assert placed.where(POOL.format(model="moe", pool="0")) == [placed.first, placed.joined[0]]

    def addresses() -> set[str]:
        (map_file,) = pools_folder(placed.cluster.state_dir).glob("*.map.json")
        return {scheme for scheme in ("unix:", "tcp:127.0.0.1:") if scheme in map_file.read_text()}

    # That on the trunk's own node by a Unix socket, the other by TCP.
    wait_for(lambda: addresses() == {"unix:", "tcp:127.0.0.1:"}, 10.0)
    # A simulated trunk holds each answer against the weights, and ends if it is wrong.
    for _ in range(8):
        assert placed.ask_moe()["degraded"] is False


def test_a_node_that_is_lost_costs_no_request(placed: Placed) -> None:
    lost = placed.joined[0]
    with (
        SteadyLoad(placed.cluster, chat("alpha", TOKENS), PER_S) as load,
        SteadyLoad(placed.cluster, chat("moe", 16), 2.0) as pooled,
    ):
        time.sleep(3.0)
        began = time.monotonic()
        lost.lose()
        ended = time.monotonic() + NOTICED_S
        time.sleep(5.0)
    assert load.failed == []
    assert pooled.failed == []
    retried = [one for one in load.outcomes if one.attempts > 1]
    # Some were on that node, so this was no accident; no other request was begun twice.
    assert retried
    served = under_way(load, began, ended)
    assert {id(one) for one in retried} <= {id(one) for one in served}
    assert len(retried) < len(served)
    assert placed.replicas() == [placed.first]
    assert placed.ask_moe()["degraded"] is False


def test_what_was_lost_comes_back_on_a_node_that_joins(placed: Placed) -> None:
    joined = placed.join(4)
    with SteadyLoad(placed.cluster, chat("alpha", TOKENS), PER_S) as load:
        wait_for(lambda: placed.ready() == 2, 60.0)
    assert load.failed == []
    assert placed.replicas() == [placed.first, joined]
    wait_for(lambda: placed.pool_replicas() == 2, 60.0)


def test_a_model_is_upgraded_on_all_nodes_and_no_request_is_lost(placed: Placed) -> None:
    with placed.cluster.client() as client:
        before = client.post(CHAT, json=chat("alpha", 8)).json()["choices"][0]["message"]["content"]
    old = set(placed.generated())
    placed.config["models"]["alpha"]["engine"]["simulated"]["seed"] = 77
    with SteadyLoad(placed.cluster, chat("alpha", TOKENS), PER_S) as load:
        assert set(placed.apply().values()) == {"replace"}
        wait_for(lambda: len(placed.replicas()) == 2, 60.0)
    assert load.failed == []
    assert len(load.outcomes) > 10
    assert not old & set(placed.generated())
    with placed.cluster.client() as client:
        assert client.post(CHAT, json=chat("alpha", 8)).json()["choices"][0]["message"]["content"] != before


def test_nothing_listens_beyond_this_machine(placed: Placed) -> None:
    processes = placed.nodes.processes()
    assert {"gcs_server", "raylet"} <= {process.name() for process in processes}
    listening = {title(process)[:80]: open_to(process) for process in processes if process.status() != "zombie"}
    beyond = {name: [ip for ip in addresses if not is_loopback(ip)] for name, addresses in listening.items()}
    assert {name: addresses for name, addresses in beyond.items() if addresses} == {}
    assert sum(len(addresses) for addresses in listening.values()) > 5
