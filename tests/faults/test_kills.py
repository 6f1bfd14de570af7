"""Kills one after the other under steady load: `loadtests.kills` on real engines, and on many simulated ones."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from loadtests.kills import KillPlan, KillReport, Victim, kill_all
from loadtests.targets import parse_target
from tests.clusters import local_config, simulated_config, start_cluster, stop_cluster
from tests.integration.cluster_processes import unused_port

pytestmark = pytest.mark.filterwarnings("ignore")


def mini_twice() -> dict[str, object]:
    """The mini model of the default alone, in two replicas."""
    config = local_config()
    models = config["models"]
    assert isinstance(models, dict)
    mini = models["mini"] | {"roles": ["strong"]}
    mini["engine"] |= {"kv_cache_bytes": 128 * 2**20}
    mini["replicas"] |= {"min": 2, "max": 2, "cpu_cores": None}
    return {
        "name": "twice",
        "models": {"mini": mini},
        "routing": {"fast_role": "strong", "code_role": "strong", "default_role": "strong"},
        "ray": {"num_cpus": 4, "health_check_period_s": 1, "health_check_timeout_s": 3},
    }


def simulated_twice() -> dict[str, object]:
    """One simulated model in two replicas."""
    config = simulated_config("alpha")
    models = config["models"]
    assert isinstance(models, dict)
    models["alpha"]["replicas"] = {"min": 2, "max": 2, "cpus": 0.1, "drain_timeout_s": 5}
    return config | {"ray": {"num_cpus": 4, "health_check_period_s": 1, "health_check_timeout_s": 3}}


def run(
    config: dict[str, object], state_dir: Path, model: str, kills: int, per_s: float, max_tokens: int = 8
) -> KillReport:
    cluster = start_cluster(config, state_dir, unused_port())
    target = parse_target(cluster.url)
    plan = KillPlan(target, cluster.state_dir, model, Victim.REPLICA, kills, per_s=per_s, max_tokens=max_tokens)
    try:
        return asyncio.run(kill_all(plan))
    finally:
        stop_cluster(cluster.env)


@pytest.mark.timeout(600)
def test_three_kills_of_real_replicas_lose_nothing(state_dir: Path) -> None:
    # What one replica can serve while the other one loads beside it, on two cores.
    report = run(mini_twice(), state_dir, "mini", kills=3, per_s=1, max_tokens=24)
    assert len(report.kills) == 3
    assert len(report.outcomes) > 30
    assert report.lost == []
    # Some were under way where it struck, so this was no accident.
    assert report.retried >= 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_kills_of_simulated_replicas_lose_nothing(state_dir: Path) -> None:
    report = run(simulated_twice(), state_dir, "alpha", kills=50, per_s=20)
    assert len(report.kills) == 50
    assert report.lost == []
    assert report.retried >= 1
