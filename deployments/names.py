"""Names under which the cluster's parts find each other in Ray Serve."""

from __future__ import annotations

INGRESS_APPLICATION = "ingress"
INGRESS_DEPLOYMENT = "Ingress"
MODEL_DEPLOYMENT = "ModelReplica"

_MODEL_PREFIX = "model-"


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
