"""What runs where on Kubernetes: one group of equal pods for the ingress, for each model, and for its expert pools.

A pod is a Ray node for one replica, and a resource that only its group offers keeps it for that. So limits, drain times and
disruption budgets are those of the model, and nothing small sits in the way of something large.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cluster.config.check_deployment import check_deployment, group_name
from cluster.config.cluster import ClusterConfig
from cluster.config.contract import DEFAULT_TIMEOUT_S
from cluster.config.deployment import DeploymentConfig
from cluster.config.mistakes import ConfigError
from cluster.config.model import ModelConfig
from deployments.head.environment import ray_environment
from deployments.processes import CLUSTER_VARIABLE

HOME: Final = "/var/lib/pointsman-home"
STATE: Final = "/var/lib/pointsman"
CACHE: Final = "/var/cache/pointsman"
CONFIG: Final = "/etc/pointsman/config"
KEYS: Final = "/etc/pointsman/keys"
USER: Final = 10001
"""Number of the user that the images are made for."""

GIB: Final = 2**30
RAY_BYTES: Final = 2 * GIB
"""Bytes of a pod beside its replica: Ray's own processes and the object store."""
RAY_MILLICPUS: Final = 250
"""Thousandths of a core of a pod beside its replica."""
INGRESS_MILLICPUS: Final = 1000
INGRESS_BYTES: Final = 2 * GIB
HEAD_MILLICPUS: Final = 2000
HEAD_BYTES: Final = 8 * GIB
"""Also what building the embedded models takes."""
SURGE: Final = 1
"""Pods of a group beyond its replicas: while a replica is replaced, the new one starts before the old one stops."""
GRACE_SLACK_S: Final = 30
"""Seconds that a pod may take to end beyond the longest request."""
SUCCESSOR_S: Final = 60
"""Seconds that an ingress on a machine that is emptied may wait for its successor: so long before its own end Serve stops it anyway."""


@dataclass(frozen=True, slots=True)
class Group:
    """One group of equal pods."""

    name: str
    resource: str
    """What its nodes alone offer, one of it each, and its replicas take."""
    image: str
    millicpus: int
    """Of a replica."""
    memory_bytes: int
    """Of a replica."""
    gpus: int
    min: int
    max: int
    grace_s: int
    """Seconds that a pod may take to end."""
    start_s: int
    """Seconds that it may take until its replica serves."""
    variables: tuple[str, ...] = ()
    """Environment variables that come from the secret of the deployment."""


def deployed(config: ClusterConfig) -> ClusterConfig:
    """The config as it holds inside the pods. Raises `ConfigError` that names everything unsafe."""
    mistakes = tuple(check_deployment(config))
    if mistakes:
        raise ConfigError("not fit for Kubernetes", mistakes)
    ray = config.ray.model_copy(update={"address": "auto", "state_dir": STATE})
    keys = config.keys.model_copy(update={"path": f"{KEYS}/keys.jsonl", "required": True})
    return config.model_copy(update={"ray": ray, "keys": keys})


def section(config: ClusterConfig) -> DeploymentConfig:
    """The section of the deployment. Raises `ValueError` if there is none."""
    if config.deployment is None:
        raise ValueError("the config has no section `deployment`")
    return config.deployment


def groups(config: ClusterConfig) -> tuple[Group, ...]:
    """All groups of workers, the ingress first."""
    where = section(config)
    password = config.records.password_env
    ingress = Group(
        name="ingress",
        resource="pointsman_ingress",
        image=where.image,
        millicpus=INGRESS_MILLICPUS,
        memory_bytes=INGRESS_BYTES + config.ingress.limits.body_bytes_at_once,
        gpus=0,
        min=config.ingress.replicas,
        max=config.ingress.replicas,
        grace_s=SUCCESSOR_S + lame_duck_s(config) + longest_request_s(config) + GRACE_SLACK_S,
        start_s=max(math.ceil(model.replicas.start_timeout_s) for model in config.models.values()),
        variables=() if password is None else (password,),
    )
    return (ingress, *(group for name, model in config.models.items() for group in _of_model(config, name, model)))


def _of_model(config: ClusterConfig, name: str, model: ModelConfig) -> Iterator[Group]:
    where = section(config)
    replicas = model.replicas
    key = None if model.upstream is None else model.upstream.api_key_env
    # Ingresses that go at the same time still send requests for a while.
    drain_s = lame_duck_s(config) + max(longest_request_s(config), math.ceil(replicas.drain_timeout_s))
    yield Group(
        name=group_name(name),
        resource=resource_of(group_name(name)),
        image=(where.gpu_image or where.image) if replicas.gpus else where.image,
        millicpus=math.ceil(replicas.cpus * 1000),
        memory_bytes=replicas.memory_bytes or 0,
        gpus=int(replicas.gpus),
        min=replicas.min,
        max=replicas.max,
        grace_s=drain_s + GRACE_SLACK_S,
        start_s=math.ceil(replicas.start_timeout_s),
        variables=() if key is None else (key,),
    )
    if model.pools is not None:
        pools = model.pools
        yield Group(
            name=pools_group(name),
            resource=resource_of(pools_group(name)),
            image=where.image,
            millicpus=math.ceil(pools.cpus * 1000),
            # A replica holds the experts of one pool; what all pools hold is bounded together.
            memory_bytes=-(-(pools.memory_bytes or 0) // pools.count),
            gpus=0,
            min=pools.count * pools.min,
            max=pools.count * pools.max,
            grace_s=drain_s + GRACE_SLACK_S,
            start_s=math.ceil(replicas.start_timeout_s),
        )


def pools_group(model: str) -> str:
    """The group of a model's expert pools."""
    return group_name(model).replace("model-", "pools-", 1)


def resource_of(group: str) -> str:
    """The resource that the nodes of a group alone offer."""
    return "pointsman_" + group.replace("-", "_")


def longest_request_s(config: ClusterConfig) -> int:
    """Seconds that a request may take at most, by the contracts."""
    return math.ceil(max((contract.timeout_s for contract in config.contracts.values()), default=DEFAULT_TIMEOUT_S))


def lame_duck_s(config: ClusterConfig) -> int:
    """Seconds that an ingress which is to stop still takes requests."""
    return math.ceil(config.ingress.lame_duck_s)


def environment(config: ClusterConfig) -> dict[str, str]:
    """The variables of every Ray process in a pod, but those that come from secrets."""
    variables = ray_environment("", False)
    # Names the processes of a cluster on a shared machine; in a pod they are alone.
    del variables[CLUSTER_VARIABLE]
    variables |= {
        "HOME": HOME,
        "HF_HOME": f"{CACHE}/huggingface",
        "HF_HUB_OFFLINE": "1",
        "POINTSMAN_CACHE": CACHE,
        "POINTSMAN_STATE_DIR": STATE,
        "RAY_AUTH_MODE": "token",
    }
    endpoint = section(config).otlp_endpoint
    if endpoint is not None:
        variables["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
    return variables
