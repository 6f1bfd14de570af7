from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cluster.config.check_deployment import check_deployment
from cluster.config.cluster import ClusterConfig
from cluster.config.mistakes import ConfigError
from deployments.render.rayservice import manifests
from tests.unit.render.conftest import COMMIT, parse, read

Spoil = Callable[[dict[str, Any]], object]


def dense(document: dict[str, Any]) -> dict[str, Any]:
    section: dict[str, Any] = document["models"]["dense"]
    return section


def external(url: str) -> dict[str, Any]:
    replicas = {"cpus": 0.5, "memory_bytes": 2**30}
    return {"kind": "external", "roles": ["big"], "upstream": {"base_url": url, "model": "m"}, "replicas": replicas}


SPOILT: dict[str, Spoil] = {
    "name": lambda made: made.update(name="x" * 42),
    "deployment": lambda made: made.pop("deployment"),
    "deployment.image": lambda made: made["deployment"].update(image="registry.example.com/pointsman:latest"),
    "deployment.gpu_image": lambda made: dense(made)["replicas"].update(gpus=1),
    "deployment.otlp_endpoint": lambda made: made["deployment"].pop("otlp_endpoint"),
    "ingress.host": lambda made: made["ingress"].update(host="127.0.0.1"),
    "ingress.port": lambda made: made["ingress"].update(port=80),
    "ingress.lame_duck_s": lambda made: made["ingress"].update(lame_duck_s=19),
    "keys.path": lambda made: made.update(keys={"path": "/etc/keys"}),
    "telemetry.traces": lambda made: made["telemetry"].update(traces="store"),
    "records.url": lambda made: made["records"].update(url="postgresql://db/records?sslmode=disable"),
    "records.password_file": lambda made: made["records"].update(password_env=None, password_file="/etc/password"),
    "ray.address": lambda made: made["ray"].update(address="10.0.0.1:6379"),
    "ray.num_cpus": lambda made: made["ray"].update(num_cpus=4),
    "ray.state_dir": lambda made: made["ray"].update(state_dir="/state"),
    "models.dense.replicas.memory_bytes": lambda made: dense(made)["replicas"].pop("memory_bytes"),
    "models.dense.replicas.cpu_cores": lambda made: dense(made)["replicas"].update(cpu_cores="0-1"),
    "models.dense.replicas.cpus": lambda made: dense(made)["replicas"].update(cpus=0),
    "models.encoder.replicas.gpus": lambda made: made["models"]["encoder"]["replicas"].update(gpus=0.5),
    "models.sparse.pools.cpu_cores": lambda made: made["models"]["sparse"]["pools"].update(cpu_cores="1"),
    "models.sparse.pools.memory_bytes": lambda made: made["models"]["sparse"]["pools"].pop("memory_bytes"),
    "models.dense.source": lambda made: dense(made).update(source="hf:org/name@main"),
    "models.mini.source": lambda made: made["models"]["mini"].update(source="path:/models/mini"),
    "models.dense.engine.chat_template": lambda made: dense(made)["engine"].update(chat_template="/chat.jinja"),
    "models.a-b": lambda made: made["models"].update({"a.b": dense(made), "a-b": dense(made)}),
    f"models.{'x' * 60}": lambda made: made["models"].update({"x" * 60: dense(made)}),
    "models.big-one.upstream.base_url": lambda made: made["models"].update(
        {"big-one": external("http://127.0.0.1:1/v1")}
    ),
}


def mistakes(config: ClusterConfig) -> dict[str, str | None]:
    return {mistake.path: mistake.remedy for mistake in check_deployment(config)}


def test_what_is_fit_is_not_refused(config: ClusterConfig) -> None:
    assert mistakes(config) == {}


@pytest.mark.parametrize("path", SPOILT)
def test_what_is_unsafe_is_refused_and_how_to_mend_it_said(path: str, document: dict[str, Any]) -> None:
    SPOILT[path](document)
    config = parse(document)
    found = mistakes(config)
    assert path in found
    assert all(found.values())
    with pytest.raises(ConfigError, match="not fit for Kubernetes") as caught:
        manifests(config)
    assert path in {mistake.path for mistake in caught.value.mistakes}


def test_a_certificate_that_nobody_could_check_is_refused(document: dict[str, Any]) -> None:
    document["records"]["url"] = "postgresql://db/records?sslmode=verify-full"
    assert "sslrootcert" in (mistakes(parse(document))["records.url"] or "")
    document["records"]["url"] += "&sslrootcert=/etc/ssl/certs/ca-certificates.crt"
    assert "records.url" not in mistakes(parse(document))


def test_keys_cannot_be_switched_off(document: dict[str, Any]) -> None:
    document["keys"] = {"required": False}
    with pytest.raises(ConfigError, match="keys cannot be switched off"):
        parse(document)


@pytest.mark.parametrize("name", ["7b", "cluster-"])
def test_a_name_is_one_for_kubernetes(name: str, document: dict[str, Any]) -> None:
    document["name"] = name
    assert mistakes(parse(document)).keys() == {"name"}


def test_a_commit_is_no_branch(document: dict[str, Any]) -> None:
    dense(document)["source"] = f"hf:org/name@{COMMIT}"
    assert mistakes(parse(document)) == {}


def test_the_embedded_default_says_all_that_it_lacks() -> None:
    found = mistakes(parse(read("local")))
    assert {"deployment", "ingress.host", "telemetry.traces", "records.url", "ray.num_cpus"} <= found.keys()
    assert {f"models.{name}.replicas.memory_bytes" for name in ("dense", "sparse", "mini", "encoder")} <= found.keys()
