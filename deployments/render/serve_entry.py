"""What a rendered Serve config imports: builders of the same applications that `pointsman up` runs.

An application is told no more than it is made of. So a change of a contract restarts the ingress, one replica after the
other, and no model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.serve import Application

from cluster.config.base import ModelName, Section
from cluster.config.cluster import ClusterConfig
from cluster.config.engine import EngineType
from cluster.config.model import ModelConfig
from cluster.config.operations import RayConfig, TelemetryConfig
from deployments.head.applications import ingress_application, model_application, pools_application
from deployments.head.state import make_state_directory, state_directory
from deployments.pools.secret import make_pools_folder
from deployments.pools.spec import secret_path
from deployments.render.nulls import with_nulls


class IngressArguments(Section):
    """What the application of the ingress is told."""

    config: dict[str, Any]
    """The config of the whole cluster, without nulls."""
    nulls: tuple[tuple[str, ...], ...] = ()
    """Paths of the fields in it that are null."""
    order: tuple[ModelName, ...] = ()
    """Its models in their order, which decides between equals: what passed through Helm comes sorted by name."""


class ModelArguments(Section):
    """What the application of one model, or of its expert pools, is told."""

    name: ModelName
    """The model's name."""
    application: str
    """Name of the Serve application itself."""
    model: dict[str, Any]
    """Its section of the config, without nulls."""
    nulls: tuple[tuple[str, ...], ...] = ()
    """Paths of the fields in it that are null."""
    ray: RayConfig
    """That section of the config: health checks, and where the state is."""
    telemetry: TelemetryConfig
    """That section of the config."""


def ingress(arguments: dict[str, Any]) -> Application:
    """The application of the ingress. Raises pydantic's `ValidationError`."""
    config = whole(IngressArguments.model_validate(arguments))
    return ingress_application(config, _state(config.ray))


def whole(told: IngressArguments) -> ClusterConfig:
    """The config of a cluster, its nulls and the order of its models restored."""
    config = ClusterConfig.model_validate(with_nulls(told.config, told.nulls))
    models = config.models
    names = sorted(models, key=lambda name: told.order.index(name) if name in told.order else len(told.order))
    return config.model_copy(update={"models": {name: models[name] for name in names}})


def model(arguments: dict[str, Any]) -> Application:
    """The application of a model. Raises pydantic's `ValidationError`, and `ModelError` for files that cannot be had."""
    told = ModelArguments.model_validate(arguments)
    config = _config(told)
    path = checkpoint(config.models[told.name])
    return model_application(told.name, config, path, _state(told.ray), told.application)


def pools(arguments: dict[str, Any]) -> Application:
    """The application of a model's expert pools. Raises what `model` raises."""
    told = ModelArguments.model_validate(arguments)
    state = _state(told.ray)
    if not secret_path(state).exists():
        make_pools_folder(state)
    config = _config(told)
    return pools_application(told.name, config, checkpoint(config.models[told.name]), state, told.application)


def checkpoint(section: ModelConfig) -> Path | None:
    """The folder of a model's files, on every node the same; None for a model that has none. Raises `ModelError`."""
    if section.source is None or section.engine.type in (EngineType.EXTERNAL, EngineType.SIMULATED):
        return None
    from deployments.cli.obtain import find_ready
    from deployments.models.sources import resolve

    # What is there already is only looked at: in a pod, the volume of the models is read-only.
    return find_ready(section.source) or resolve(section.source, None, lambda _text, _done: None)


def _config(told: ModelArguments) -> ClusterConfig:
    """The part of a config that the application of one model is made of; the whole was checked where it was rendered."""
    section = ModelConfig.model_validate(with_nulls(told.model, told.nulls))
    return ClusterConfig.model_construct(models={told.name: section}, ray=told.ray, telemetry=told.telemetry)


def _state(section: RayConfig) -> Path:
    state = state_directory(section.state_dir)
    make_state_directory(state)
    return state
