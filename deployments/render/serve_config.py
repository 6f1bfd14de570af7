"""The Serve config of a cluster, as `serve deploy` and KubeRay take it."""

from __future__ import annotations

from typing import Any, Final

from cluster.config.check_deployment import group_name
from cluster.config.cluster import ClusterConfig
from cluster.config.model import ModelConfig
from deployments.names import (
    INGRESS_APPLICATION,
    INGRESS_DEPLOYMENT,
    MODEL_DEPLOYMENT,
    model_application_name,
    pool_deployment_name,
    pools_application_name,
)
from deployments.render import nulls
from deployments.render.layout import SURGE, pools_group, resource_of

ENTRY: Final = "deployments.render.serve_entry"
QUIET: Final[dict[str, Any]] = {"enable_access_log": False, "log_level": "WARNING"}
INGRESS_CPUS: Final = 0.1
"""As in `deployments.head.applications`, which is not imported here because it imports Ray; a test compares them."""


def serve_config(config: ClusterConfig, *, placed: bool = False) -> dict[str, Any]:
    """The config, JSON values. `placed`: each replica has a node of its own, as on Kubernetes; else Ray puts it where it fits.

    Expert pools come before their model, and scale themselves.
    """
    config = joining(config)
    document = nulls.document(config)
    set_to_null = nulls.nulls(config)
    applications = [
        {
            "name": INGRESS_APPLICATION,
            "route_prefix": None,
            "import_path": f"{ENTRY}:ingress",
            "args": {"config": document, "order": list(config.models), "nulls": set_to_null},
            "deployments": [
                _deployment(INGRESS_DEPLOYMENT, {"num_cpus": INGRESS_CPUS}, "pointsman_ingress", placed, surge=True)
            ],
        }
    ]
    for name, model in config.models.items():
        applications += _of_model(name, model, document, model_nulls(set_to_null, name), placed)
    # No proxies: the ingress listens itself.
    return {"proxy_location": "Disabled", "logging_config": dict(QUIET), "applications": applications}


def joining(config: ClusterConfig) -> ClusterConfig:
    """The config on a Ray cluster that runs already: parts of it on other machines reach each other at their node's address."""
    if config.ray.address is not None:
        return config
    ray = config.ray.model_copy(update={"address": "auto", "num_cpus": None})
    return config.model_copy(update={"ray": ray})


def model_nulls(paths: list[nulls.Path], name: str) -> list[nulls.Path]:
    """Of the paths below the whole config, those below a model, from there on."""
    return [path[2:] for path in paths if path[:2] == ["models", name]]


def _of_model(
    name: str, model: ModelConfig, document: dict[str, Any], set_to_null: list[nulls.Path], placed: bool
) -> list[dict[str, Any]]:
    application = model_application_name(name)
    told = {
        "name": name,
        "model": document["models"][name],
        "ray": document["ray"],
        "telemetry": document["telemetry"],
        "nulls": set_to_null,
    }
    options: dict[str, Any] = {"num_cpus": model.replicas.cpus, "num_gpus": model.replicas.gpus}
    if model.replicas.memory_bytes is not None:
        options["memory"] = model.replicas.memory_bytes
    resource = resource_of(group_name(name))
    own = {
        "name": application,
        "route_prefix": None,
        "import_path": f"{ENTRY}:model",
        "args": told | {"application": application},
        "deployments": [_deployment(MODEL_DEPLOYMENT, options, resource, placed, surge=placed)],
    }
    if model.pools is None:
        return [own]
    pools = pools_application_name(application)
    resource = resource_of(pools_group(name))
    of_pools = {
        "name": pools,
        "route_prefix": None,
        "import_path": f"{ENTRY}:pools",
        "args": told | {"application": pools},
        "external_scaler_enabled": True,
        "deployments": [
            _deployment(
                pool_deployment_name(str(number)), {"num_cpus": model.pools.cpus}, resource, placed, surge=False
            )
            for number in range(model.pools.count)
        ],
    }
    return [of_pools, own]


def _deployment(name: str, options: dict[str, Any], resource: str, placed: bool, *, surge: bool) -> dict[str, Any]:
    made: dict[str, Any] = {"name": name}
    made["ray_actor_options"] = options | ({"resources": {resource: 1}} if placed else {})
    if surge:
        # Of up to a hundred replicas, a hundredth is one: the new one starts before the old one stops.
        made["max_surge_percent"] = SURGE
    return made
