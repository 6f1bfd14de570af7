"""Names under which the cluster's parts find each other in Ray Serve."""

from __future__ import annotations

INGRESS_APPLICATION = "ingress"
INGRESS_DEPLOYMENT = "Ingress"
MODEL_DEPLOYMENT = "ModelReplica"
POOLS_DEPLOYMENT = "ExpertPools"
"""Decides on the pools of experts of one model, and tells how they stand."""

_MODEL_PREFIX = "model-"
_POOLS_PREFIX = "pools-"


def model_application_name(model: str) -> str:
    """The Serve application of a model."""
    return f"{_MODEL_PREFIX}{model}"


def later_application_name(model: str, generation: int) -> str:
    """The same of a model whose replicas were replaced, 2 for the first time. No model's name holds a `~`."""
    return f"{model_application_name(model)}~{generation}"


def model_of_application(application: str) -> str | None:
    """The model that a Serve application serves, whichever of its generations; None for one that is no model's."""
    if not application.startswith(_MODEL_PREFIX):
        return None
    return application.removeprefix(_MODEL_PREFIX).split("~", 1)[0]


def pools_application_name(model_application: str) -> str:
    """The Serve application of the expert pools that belong to the application of a model."""
    return f"{_POOLS_PREFIX}{model_application.removeprefix(_MODEL_PREFIX)}"


def model_of_pools(application: str) -> str | None:
    """The model whose expert pools are in a Serve application; None for one that is no such."""
    if not application.startswith(_POOLS_PREFIX):
        return None
    return application.removeprefix(_POOLS_PREFIX).split("~", 1)[0]


def pool_deployment_name(pool: str) -> str:
    """The deployment of one pool in that application."""
    return f"Pool-{pool}"
