"""The Serve applications of a cluster: one for the ingress and one per model, so that they fail and heal apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from cluster.config.cluster import ClusterConfig
from cluster.config.contract import DEFAULT_TIMEOUT_S
from cluster.config.model import ModelConfig
from deployments.autoscaling import POLICY, targets
from deployments.ingress.deployment import Ingress
from deployments.names import (
    INGRESS_DEPLOYMENT,
    MODEL_DEPLOYMENT,
    POOLS_DEPLOYMENT,
    pool_deployment_name,
    pools_application_name,
)
from deployments.pools.pools import ExpertPools
from deployments.pools.replica import LEAVE_S, PoolReplica
from deployments.pools.spec import PoolsSpec
from deployments.replica.deployment import ModelReplica
from deployments.replica.spec import ReplicaSpec
from deployments.router import ChannelRouter
from deployments.serve_internals import with_version

INGRESS_CPUS = 0.1
"""Reserved in Ray's books for an ingress; what it really uses depends on the traffic."""

POOL_STOP_S = 3.0
"""Seconds that a pool may take to end once its trunks have let go."""

MAX_ASKING = 100_000
"""Questions that are open at a time at the deployment which knows a model's pools."""

START_ATTEMPTS = 2
"""Tries per replica before a model counts as failed. A load that fails twice fails for a reason."""


def run_application(name: str, application: Application, *, scaled_by_us: bool = False) -> None:
    """Hand an application to Serve, new or changed, and wait for nothing. `scaled_by_us`: Serve does not scale it."""
    serve.run_many(
        [serve.RunTarget(application, name=name, route_prefix=None, external_scaler_enabled=scaled_by_us)],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def run_model(name: str, config: ClusterConfig, path: Path | None, state_dir: Path, application_name: str) -> None:
    """Hand the application of a model to Serve, and before it the one of its expert pools, where it has some.

    Pools that are there already stay as they are: no field of theirs changes under an application that goes on.
    """
    pools = pools_application_name(application_name)
    if config.models[name].pools is not None and pools not in serve.status().applications:
        run_application(pools, pools_application(name, config, path, state_dir, pools), scaled_by_us=True)
    run_application(application_name, model_application(name, config, path, state_dir, application_name))


def applications_of(application_name: str, model: ModelConfig) -> list[str]:
    """The Serve applications that the one of a model consists of, in the order in which they are to go."""
    return [application_name] if model.pools is None else [application_name, pools_application_name(application_name)]


def pools_application(
    name: str, config: ClusterConfig, path: Path | None, state_dir: Path, application_name: str
) -> Application:
    """The application of the expert pools of a model: a deployment for each, and the one that decides on them."""
    model = config.models[name]
    spec = PoolsSpec(name, model, path, config.telemetry, state_dir, application_name)
    common: dict[str, Any] = {
        "health_check_period_s": config.ray.health_check_period_s,
        "health_check_timeout_s": config.ray.health_check_timeout_s,
        "graceful_shutdown_wait_loop_s": 0.2,
        "max_constructor_retry_count": START_ATTEMPTS,
        "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
    }
    pools = []
    for pool in spec.names:
        deployment: Deployment = serve.deployment(
            name=pool_deployment_name(pool),
            num_replicas=spec.pools.min,
            ray_actor_options={"num_cpus": spec.pools.cpus},
            graceful_shutdown_timeout_s=model.replicas.drain_timeout_s + LEAVE_S + POOL_STOP_S,
            **common,
        )(PoolReplica)
        pools.append(deployment.bind(spec, pool))
    root: Deployment = serve.deployment(
        name=POOLS_DEPLOYMENT,
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        # Every trunk holds a question open.
        max_ongoing_requests=MAX_ASKING,
        graceful_shutdown_timeout_s=POOL_STOP_S,
        **common,
    )(ExpertPools)
    application: Application = root.bind(spec, *pools)
    return application


def model_application(
    name: str, config: ClusterConfig, path: Path | None, state_dir: Path, application_name: str
) -> Application:
    """The application of one model. Handed to Serve again under the same name, it keeps its replicas."""
    model = config.models[name]
    replicas = model.replicas
    options: dict[str, object] = {"num_cpus": replicas.cpus, "num_gpus": replicas.gpus}
    if replicas.memory_bytes is not None:
        options["memory"] = replicas.memory_bytes
    scaling: dict[str, Any] = {"num_replicas": replicas.min}
    if replicas.min != replicas.max:
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=replicas.min,
                max_replicas=replicas.max,
                target_ongoing_requests=replicas.target_ongoing_requests,
                upscale_delay_s=replicas.scaling.upscale_delay_s,
                downscale_delay_s=replicas.scaling.downscale_delay_s,
                downscale_to_zero_delay_s=replicas.scaling.downscale_to_zero_delay_s,
                policy=AutoscalingPolicy(
                    policy_function=POLICY,
                    policy_kwargs={"aims": targets(replicas.scaling), "tolerance": replicas.scaling.tolerance},
                ),
            )
        }
    deployment: Deployment = serve.deployment(
        name=MODEL_DEPLOYMENT,
        ray_actor_options=options,
        max_ongoing_requests=replicas.max_ongoing_requests,
        max_queued_requests=replicas.max_queued_requests,
        graceful_shutdown_timeout_s=replicas.drain_timeout_s,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=config.ray.health_check_period_s,
        health_check_timeout_s=config.ray.health_check_timeout_s,
        max_constructor_retry_count=START_ATTEMPTS,
        request_router_config=RequestRouterConfig.model_validate({"request_router_class": ChannelRouter}),
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
        **scaling,
    )(ModelReplica)
    deployment = with_version(deployment, application_name)
    pools = None if model.pools is None else pools_application_name(application_name)
    application: Application = deployment.bind(ReplicaSpec(name, model, path, config.telemetry, state_dir, pools))
    return application


def ingress_application(config: ClusterConfig, state_dir: Path, told: dict[str, Any] | None = None) -> Application:
    """The application of the ingress. `config` is the one that the cluster was started with, `told` what it was told since.

    Handed to Serve again with something else to be told, its processes stay, and are told.
    """
    deployment: Deployment = serve.deployment(
        name=INGRESS_DEPLOYMENT,
        num_replicas=config.ingress.replicas,
        ray_actor_options={"num_cpus": INGRESS_CPUS},
        health_check_period_s=config.ray.health_check_period_s,
        health_check_timeout_s=config.ray.health_check_timeout_s,
        graceful_shutdown_timeout_s=config.ingress.lame_duck_s
        + max((contract.timeout_s for contract in config.contracts.values()), default=DEFAULT_TIMEOUT_S),
        graceful_shutdown_wait_loop_s=0.2,
        max_constructor_retry_count=START_ATTEMPTS,
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
        user_config=told,
    )(Ingress)
    deployment = with_version(deployment, config.name)
    application: Application = deployment.bind(config, state_dir)
    return application
