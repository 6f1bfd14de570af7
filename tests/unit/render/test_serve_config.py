from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema

from cluster.config.cluster import ClusterConfig
from cluster.config.in_force import in_force
from deployments.head import applications
from deployments.render import serve_entry
from deployments.render.serve_config import ENTRY, INGRESS_CPUS, joining, serve_config
from deployments.render.text import dump
from tests.unit.render.conftest import gpu_document, parse, read

BUILDERS = {"ingress": serve_entry.ingress, "model": serve_entry.model, "pools": serve_entry.pools}


@pytest.fixture(params=["local", "pools", "pressure", "kubernetes", "gpu"])
def any_config(request: pytest.FixtureRequest) -> ClusterConfig:
    return parse(gpu_document() if request.param == "gpu" else read(request.param))


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory; no model's files are looked for."""
    monkeypatch.setenv("POINTSMAN_STATE_DIR", str(tmp_path))
    monkeypatch.setattr(serve_entry, "checkpoint", lambda _model: tmp_path)
    return tmp_path


def build(application: dict[str, Any]) -> Application:
    module, _, builder = application["import_path"].partition(":")
    assert module == ENTRY
    return BUILDERS[builder](application["args"])


def deployments_of(application: Application) -> dict[str, Any]:
    """The deployments of an application by name."""
    found: dict[str, Any] = {}

    def visit(node: Application) -> None:
        bound = node._bound_deployment
        found[bound.name] = bound
        for argument in bound.init_args:
            if isinstance(argument, Application):
                visit(argument)

    visit(application)
    return found


@pytest.mark.parametrize("placed", [False, True])
def test_ray_takes_it(any_config: ClusterConfig, placed: bool) -> None:
    text = dump(serve_config(any_config, placed=placed))
    schema = ServeDeploySchema.model_validate(yaml.safe_load(text))
    assert schema.proxy_location == "Disabled"
    pools = {f"pools-{name}" for name, model in any_config.models.items() if model.pools is not None}
    assert {one.name for one in schema.applications} == {
        "ingress",
        *(f"model-{name}" for name in any_config.models),
    } | pools
    assert {one.name for one in schema.applications if one.external_scaler_enabled} == pools


def test_what_is_built_is_what_the_head_runs(any_config: ClusterConfig, state: Path) -> None:
    rendered = {one["name"]: one for one in serve_config(any_config)["applications"]}
    ingress = deployments_of(build(rendered["ingress"]))["Ingress"]
    expected = deployments_of(applications.ingress_application(any_config, state))["Ingress"]
    # On a Ray cluster that runs already; what is for one of its own is left out.
    assert in_force(ingress.init_args[0]) == in_force(joining(any_config))
    assert ingress.init_args[0].ray.address == "auto"
    assert list(ingress.init_args[0].models) == list(any_config.models)
    assert ingress._deployment_config == expected._deployment_config
    for name, model in any_config.models.items():
        made = deployments_of(build(rendered[f"model-{name}"]))["ModelReplica"]
        meant = deployments_of(applications.model_application(name, any_config, state, state, f"model-{name}"))[
            "ModelReplica"
        ]
        assert made.init_args == meant.init_args
        assert made._deployment_config == meant._deployment_config
        assert made.ray_actor_options == meant.ray_actor_options
        if model.pools is not None:
            application = f"pools-{name}"
            made_pools = deployments_of(build(rendered[application]))
            meant_pools = deployments_of(applications.pools_application(name, any_config, state, state, application))
            assert made_pools.keys() == meant_pools.keys()
            assert all(made_pools[one].init_args[0] == meant_pools[one].init_args[0] for one in made_pools)
            assert (state / "pools" / "secret").is_file()


def test_what_is_said_of_deployments_is_what_they_are(any_config: ClusterConfig, state: Path) -> None:
    assert INGRESS_CPUS == applications.INGRESS_CPUS
    for application in serve_config(any_config)["applications"]:
        built = deployments_of(build(application))
        for deployment in application["deployments"]:
            said = {name: value for name, value in deployment["ray_actor_options"].items() if value}
            assert said == {name: value for name, value in built[deployment["name"]].ray_actor_options.items() if value}


def test_a_contract_changes_the_ingress_alone(document: dict[str, Any]) -> None:
    before = serve_config(parse(document))
    document["contracts"]["fast"]["max_completion_tokens"] = 64
    after = serve_config(parse(document))
    changed = [
        new["name"] for old, new in zip(before["applications"], after["applications"], strict=True) if old != new
    ]
    assert changed == ["ingress"]


def test_a_null_survives(document: dict[str, Any]) -> None:
    document["models"]["sparse"]["pools"]["uneven"] = None
    document["models"]["dense"]["replicas"]["scaling"] = {"target_waiting": None}
    config = parse(document)
    arguments = serve_config(config)["applications"][0]["args"]
    assert arguments["nulls"] == [
        ["models", "dense", "replicas", "scaling", "target_waiting"],
        ["models", "sparse", "pools", "uneven"],
    ]
    assert "null" not in dump(arguments["config"])
    told = serve_entry.IngressArguments.model_validate(arguments)
    assert in_force(serve_entry.whole(told)) == in_force(joining(config))


def test_models_keep_their_order(document: dict[str, Any]) -> None:
    config = parse(document)
    arguments = serve_config(config)["applications"][0]["args"]
    arguments["config"]["models"] = dict(sorted(arguments["config"]["models"].items(), reverse=True))
    told = serve_entry.IngressArguments.model_validate(arguments)
    assert list(serve_entry.whole(told).models) == list(config.models)
