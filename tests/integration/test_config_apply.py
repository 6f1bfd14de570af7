"""`pointsman config apply` on a running cluster under load. The tests run in this order, each from where the last one left it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.clusters import RunningCluster, simulated_config, start_cluster, stop_cluster
from tests.faults.load import CHAT, SteadyLoad, chat
from tests.integration.cluster_processes import replicas_of, unused_port, wait_for

pytestmark = pytest.mark.timeout(240)

PER_S = 8.0


class Changing:
    """A cluster, and its config as it is changed step by step."""

    def __init__(self, cluster: RunningCluster) -> None:
        self.cluster = cluster
        self.config: dict[str, Any] = yaml.safe_load(cluster.config_path.read_text())

    def apply(self, *options: str) -> tuple[int, dict[str, Any], str]:
        """Exit status, what was printed as JSON, standard error."""
        path = self.cluster.state_dir / "next.yaml"
        path.write_text(yaml.safe_dump(self.config))
        done = self.cluster.pointsman("config", "apply", str(path), "--json", *options, timeout_s=200)
        return done.returncode, json.loads(done.stdout) if done.stdout.strip() else {}, done.stderr

    def applied(self) -> dict[str, str]:
        """Apply under load, losing nothing; how each changed field came into force."""
        bodies = [chat("alpha", 12), chat("auto", 12)]
        with SteadyLoad(self.cluster, bodies[0], PER_S) as named, SteadyLoad(self.cluster, bodies[1], PER_S) as auto:
            status, printed, errors = self.apply()
        assert status == 0, errors
        assert named.failed == auto.failed == []
        assert len(named.outcomes) > 3
        return {change["path"]: change["how"] for change in printed["changes"]}

    def asked(self, **body: Any) -> Any:
        """One answer."""
        with self.cluster.client() as client:
            return client.post(CHAT, json=chat("alpha", 4) | body)


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Changing]:
    config = simulated_config("alpha", "beta")
    models = config["models"]
    assert isinstance(models, dict)
    for model in models.values():
        model["replicas"] |= {"drain_timeout_s": 10}
    config["contracts"] = {"strong": {"max_prompt_tokens": 512, "max_completion_tokens": 64}}
    config["ray"] = {"num_cpus": 4}
    started = start_cluster(config, tmp_path_factory.mktemp("live") / "state", unused_port())
    yield Changing(started)
    stop_cluster(started.env)


def test_nothing_differs_and_what_a_dry_run_shows(changing: Changing) -> None:
    assert changing.apply()[1]["changes"] == []
    changing.config["ingress"]["limits"] = {"max_stop": 1}
    status, printed, _ = changing.apply("--dry-run")
    assert (status, printed["applied"]) == (0, False)
    assert [change["path"] for change in printed["changes"]] == ["ingress.limits.max_stop"]
    assert changing.asked(stop=["a", "b"]).status_code == 200


def test_limits_contracts_and_routing_change_at_once(changing: Changing) -> None:
    changing.config["ingress"]["limits"] = {"max_stop": 1}
    changing.config["contracts"]["strong"]["max_completion_tokens"] = 32
    changing.config["routing"]["default_role"] = "role_beta"
    changing.config["routing"]["fast_role"] = "role_beta"
    assert set(changing.applied().values()) == {"live"}
    refused = changing.asked(stop=["a", "b"])
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stop")
    over = changing.asked(model="strong", max_tokens=33)
    assert over.status_code == 400
    assert "32" in over.json()["error"]["message"]
    assert changing.asked(model="auto").json()["pointsman"]["model"] == "beta"


def test_a_model_is_replaced_by_new_replicas(changing: Changing) -> None:
    before = changing.asked().json()["choices"][0]["message"]["content"]
    (old,) = replicas_of(changing.cluster, "alpha")
    changing.config["models"]["alpha"]["engine"]["simulated"] = {"seed": 77}
    assert set(changing.applied().values()) == {"replace"}
    assert changing.asked().json()["choices"][0]["message"]["content"] != before
    wait_for(lambda: not old.is_running(), 30.0)
    with changing.cluster.client() as client:
        assert client.get("/readyz").json()["models"]["alpha"] == {"ready": True, "replicas": 1, "reason": None}


def test_replicas_are_scaled_and_those_that_run_stay(changing: Changing) -> None:
    changing.config["models"]["alpha"]["replicas"] |= {"min": 2, "max": 2}
    assert set(changing.applied().values()) == {"scale"}

    def ready() -> int:
        with changing.cluster.client() as client:
            return int(client.get("/readyz").json()["models"]["alpha"]["replicas"])

    wait_for(lambda: ready() == 2, 60.0)


def test_models_come_and_go(changing: Changing) -> None:
    assert changing.asked(model="gamma").status_code == 404
    models = changing.config["models"]
    models["gamma"] = models.pop("beta")
    assert changing.applied() == {"models.beta": "remove", "models.gamma": "add"}
    assert changing.asked(model="gamma").status_code == 200
    assert changing.asked(model="beta").status_code == 404
    assert changing.asked(model="auto").json()["pointsman"]["model"] == "gamma"
    status = changing.cluster.status()["models"]
    assert isinstance(status, dict)
    assert set(status) == {"alpha", "gamma"}


@pytest.mark.parametrize(
    ("section", "field", "value", "path", "exit_status"),
    [
        ("ingress", "port", 1, "ingress.port", 3),
        ("routing", "switch_margin", 7, "routing.switch_margin", 2),
        ("routing", "default_role", "nobody", "routing.default_role", 2),
        ("ingress", "speed", 1, "ingress.speed", 2),
    ],
)
def test_a_bad_config_changes_nothing(
    changing: Changing, section: str, field: str, value: object, path: str, exit_status: int
) -> None:
    good = json.loads(json.dumps(changing.config))
    changing.config[section][field] = value
    status, _, errors = changing.apply()
    changing.config = good
    assert status == exit_status
    assert path in errors
    assert changing.asked(model="auto").json()["pointsman"]["model"] == "gamma"
    assert changing.apply("--dry-run")[1]["changes"] == []


def test_a_model_that_does_not_load_leaves_the_old_one_serving(changing: Changing, tmp_path: Path) -> None:
    good = json.loads(json.dumps(changing.config))
    changing.config["models"]["alpha"] |= {"replicas": {"min": 1, "max": 1, "cpus": 300}}
    with SteadyLoad(changing.cluster, chat("alpha", 12), PER_S) as load:
        status, _, errors = changing.apply("--timeout", "5")
    changing.config = good
    assert status == 1
    assert "both the old and the new replicas must fit" in errors
    assert load.failed == []
    assert changing.apply("--dry-run")[1]["changes"] == []


def test_up_with_the_new_config_finds_it_running(changing: Changing) -> None:
    again = changing.cluster.pointsman("up", "--config", str(changing.cluster.state_dir / "next.yaml"))
    changing.apply()
    again = changing.cluster.pointsman("up", "--config", str(changing.cluster.state_dir / "next.yaml"))
    assert again.returncode == 0, again.stderr
