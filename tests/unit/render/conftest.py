"""Configs that are rendered, and the schema of KubeRay where it is at hand."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config.cluster import ClusterConfig
from cluster.config.load import parse_config

ROOT = Path(__file__).resolve().parents[3]
SERVICE_CRD = ROOT.parent / "shared" / "crd" / "ray.io_rayservices.yaml"
"""KubeRay's own definition of a RayService; it is not part of this repository."""
LEFT_OUT = pytest.StashKey[int]()
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if SERVICE_CRD.is_file():
        return
    left_out = [item for item in items if "service_schema" in getattr(item, "fixturenames", ())]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
        config.stash[LEFT_OUT] = len(left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was not tested here."""
    count = config.stash.get(LEFT_OUT, 0)
    if count:
        terminalreporter.write_line(
            f"{count} tests against KubeRay's schema were left out: it is not at {SERVICE_CRD}."
        )


def read(name: str) -> dict[str, Any]:
    """A packaged config as a mapping."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "infra" / "clusters" / f"{name}.yaml").read_text())
    return content


def gpu_document() -> dict[str, Any]:
    """The production portfolio with what Kubernetes needs to know beside it, and a field that is null against its default."""
    made = read("gpu")
    for position, model in enumerate(made["models"].values(), start=1):
        model["replicas"]["memory_bytes"] = position * 2**34
        if "source" in model:
            model["source"] = model["source"].replace("@main", f"@{COMMIT}")
    made["models"]["qwen3-0.6b"]["replicas"]["scaling"] = {"target_kv_usage": None}
    made["models"]["hosted"]["upstream"]["base_url"] = "https://models.example.com:8443/v1"
    made["records"] = {"enabled": False}
    made["ingress"]["lame_duck_s"] = 20
    made["deployment"] = {
        "image": "registry.example.com/pointsman-cpu:0.1.0",
        "gpu_image": f"registry.example.com/pointsman-gpu@sha256:{'ab' * 32}",
        "namespace": "llm",
        "redis_address": "redis.example.com:6380",
        "otlp_endpoint": "http://collector.monitoring:4317",
        "storage_class": "shared",
    }
    return made


def parse(document: dict[str, Any]) -> ClusterConfig:
    """The config of a mapping."""
    return parse_config(json.dumps(document), "test.yaml")


@pytest.fixture
def document() -> dict[str, Any]:
    """A config that is fit for Kubernetes, to be spoilt."""
    return copy.deepcopy(read("kubernetes"))


@pytest.fixture(params=["kubernetes", "gpu"])
def config(request: pytest.FixtureRequest) -> ClusterConfig:
    """Each of two configs that are fit for Kubernetes: embedded models with pools, and large ones on GPUs."""
    return parse(read("kubernetes") if request.param == "kubernetes" else gpu_document())


@pytest.fixture(scope="session")
def service_schema() -> dict[str, Any]:
    """The schema of a RayService, where KubeRay's definition is at hand."""
    return strict_service_schema()


def strict_service_schema() -> dict[str, Any]:
    """The schema of a RayService, made strict: a field that it does not know is refused, which Kubernetes drops silently."""
    definition = yaml.safe_load(SERVICE_CRD.read_text())
    (version,) = [one for one in definition["spec"]["versions"] if one["name"] == "v1"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    _close(schema)
    return schema


def _close(schema: Any) -> None:
    if isinstance(schema, list):
        for inner in schema:
            _close(inner)
    if not isinstance(schema, dict):
        return
    fields = schema.get("properties")
    is_open = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if schema.get("type") == "object" and isinstance(fields, dict) and not is_open:
        schema["additionalProperties"] = False
    for inner in [
        *(fields.values() if isinstance(fields, dict) else ()),
        schema.get("items"),
        schema.get("additionalProperties"),
    ]:
        _close(inner)
