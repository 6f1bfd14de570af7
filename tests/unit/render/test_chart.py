"""The chart by Helm itself: its library lints and renders it, and what comes out is what is rendered without it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python.chart import Chart, lint
from helm_python.errors import HelmError
from yamllint import linter
from yamllint.config import YamlLintConfig

from cluster.config.cluster import ClusterConfig
from cluster.config.in_force import in_force
from deployments.render import nulls
from deployments.render.chart import write_chart
from deployments.render.layout import deployed
from deployments.render.rayservice import manifests
from deployments.render.serve_config import serve_config
from tests.unit.render.conftest import gpu_document, parse

Object = dict[str, Any]
Objects = dict[tuple[str, str], Object]


def by_name(objects: list[Object]) -> Objects:
    """Objects by kind and name, in a form in which only what they say counts: Helm sorts by name, and keeps the volume."""
    found: Objects = {}
    for one in copy.deepcopy(objects):
        one["metadata"].pop("annotations", None)
        if one["kind"] == "RayService":
            serve = yaml.safe_load(one["spec"]["serveConfigV2"])
            serve["applications"].sort(key=lambda application: str(application["name"]))
            one["spec"]["serveConfigV2"] = serve
            one["spec"]["rayClusterConfig"]["workerGroupSpecs"].sort(key=lambda group: str(group["groupName"]))
        if one["kind"] == "ConfigMap":
            one["data"] = {name: yaml.safe_load(text) for name, text in one["data"].items()}
        found[one["kind"], one["metadata"]["name"]] = one
    return found


def render(folder: Path, namespace: str, values: Object | None = None) -> Objects:
    """What `helm template` prints."""
    with Chart.load(folder) as chart:
        texts = chart.render(values, name="release", namespace=namespace)
    documents = [one for name, text in texts.items() if name.endswith(".yaml") for one in yaml.safe_load_all(text)]
    return by_name([one for one in documents if one is not None])


def namespace_of(config: ClusterConfig) -> str:
    assert config.deployment is not None
    return config.deployment.namespace


@pytest.fixture
def chart(config: ClusterConfig, tmp_path: Path) -> Path:
    written = write_chart(config, tmp_path / "chart")
    assert sorted(path for path in (tmp_path / "chart").rglob("*") if path.is_file()) == written
    return tmp_path / "chart"


def test_helm_lints_it(chart: Path, config: ClusterConfig) -> None:
    found = lint(chart, namespace=namespace_of(config))
    assert [one["error"] for one in found["messages"]] == ["icon is recommended"]
    assert found["errors"] == []


def test_yamllint_takes_its_values(chart: Path) -> None:
    rules = YamlLintConfig("extends: default\nrules: {line-length: disable, document-start: disable}")
    for name in ("values.yaml", "Chart.yaml"):
        assert [str(one) for one in linter.run((chart / name).read_text(), rules)] == []


def test_helm_makes_the_same_objects(chart: Path, config: ClusterConfig) -> None:
    assert render(chart, namespace_of(config)) == by_name(manifests(config))


def test_its_values_are_the_config(chart: Path, config: ClusterConfig) -> None:
    values = yaml.safe_load((chart / "values.yaml").read_text())
    whole = nulls.with_nulls(values["config"], values["nulls"]["config"])
    assert in_force(ClusterConfig.model_validate(whole)) == in_force(deployed(config))


def test_a_value_that_is_changed_changes_what_follows_from_it(tmp_path: Path) -> None:
    """Of a chart whose values are changed afterwards comes what the changed config gives."""
    document = gpu_document()
    write_chart(parse(document), tmp_path)
    changes: Object = {
        "contracts": {"large_context": {"timeout_s": 1200}},
        "models": {
            "llama-70b": {"replicas": {"max": 6, "cpus": 12.5}},
            "hosted": {"upstream": {"api_key_env": "OTHER_KEY"}},
        },
        "deployment": {"image": "registry.example.com/pointsman-cpu:0.2.0"},
        "ingress": {"port": 9000, "replicas": 3, "lame_duck_s": 44.5},
    }
    _merge(document, changes)
    assert render(tmp_path, "llm", {"config": changes}) == by_name(manifests(parse(document)))


def test_names_that_yaml_has_other_types_for_stay_names(document: Object, tmp_path: Path) -> None:
    document["name"] = "n"
    document["deployment"] |= {
        "namespace": "1e3", "redis_secret": "0123", "ray_token_secret": "null", "keys_secret": "1", "environment_secret": "no",
        "pools_secret": "0o17", "storage_class": "yes",
    }  # fmt: skip
    config = parse(document)
    write_chart(config, tmp_path)
    assert render(tmp_path, "1e3") == by_name(manifests(config))


def test_a_null_survives(document: Object, tmp_path: Path) -> None:
    document["models"]["sparse"]["pools"]["uneven"] = None
    config = parse(document)
    write_chart(config, tmp_path)
    assert render(tmp_path, "pointsman") == by_name(manifests(config))


def test_helm_refuses_a_model_without_a_bound(chart: Path, config: ClusterConfig) -> None:
    name = next(iter(config.models))
    values = {"config": {"models": {name: {"replicas": {"memory_bytes": None}}}}}
    with pytest.raises(HelmError, match=f"config.models.{name}.replicas.memory_bytes is missing"):
        render(chart, "x", values)


def test_the_three_outputs_agree(chart: Path, config: ClusterConfig) -> None:
    """Models, replicas, resources, images, environment and probes, in the words of each output."""
    inside = deployed(config)
    plain = {one["name"]: one for one in serve_config(inside)["applications"]}
    for objects in (by_name(manifests(config)), render(chart, namespace_of(config))):
        service = objects["RayService", config.name]["spec"]
        placed = {one["name"]: one for one in service["serveConfigV2"]["applications"]}
        assert placed.keys() == plain.keys()
        groups = {one["groupName"]: one for one in service["rayClusterConfig"]["workerGroupSpecs"]}
        for name, application in plain.items():
            assert placed[name]["args"] == application["args"]
            assert placed[name]["import_path"] == application["import_path"]
            pairs = zip(application["deployments"], placed[name]["deployments"], strict=True)
            for mine, its in pairs:
                ((resource, _),) = its["ray_actor_options"].pop("resources").items()
                assert mine["name"] == its["name"]
                assert mine["ray_actor_options"] == its["ray_actor_options"]
                (home,) = [one for one in groups.values() if resource in one["resources"]]
                (container,) = home["template"]["spec"]["containers"]
                cores = float(container["resources"]["limits"]["cpu"].removesuffix("m")) / 1000
                assert cores >= mine["ray_actor_options"]["num_cpus"]
                assert int(container["resources"]["limits"]["memory"]) >= mine["ray_actor_options"].get("memory", 0)
                assert {"livenessProbe", "readinessProbe"} <= container.keys()
                if name.startswith("model-"):
                    replicas = application["args"]["model"]["replicas"]
                    assert (home["minReplicas"], home["maxReplicas"] - 1) == (replicas["min"], replicas["max"])


def _merge(into: Object, changes: Object) -> None:
    for name, value in changes.items():
        if isinstance(value, dict):
            _merge(into[name], value)
        else:
            into[name] = value
