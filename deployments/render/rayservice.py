"""The RayService of a cluster (`ray.io/v1`): a head, a group of pods for each part, and the Serve config that runs on them."""

from __future__ import annotations

import math
from typing import Any, Final

from cluster.config.cluster import ClusterConfig
from deployments.render.layout import SURGE, Group, deployed, groups, section
from deployments.render.network import network_policies
from deployments.render.objects import cluster_objects
from deployments.render.pods import autoscaler, head_template, labels, worker_template
from deployments.render.serve_config import serve_config
from deployments.render.text import dump

RAY_VERSION: Final = "2.60.0"
OLD_CLUSTER_S: Final = 60
"""Seconds that a cluster which was replaced stays beyond the longest request."""


def manifests(config: ClusterConfig) -> list[dict[str, Any]]:
    """Every object, in the order in which they are to be applied. Raises `ConfigError` that names everything unsafe."""
    inside = deployed(config)
    return [*cluster_objects(inside), *network_policies(inside), ray_service(inside)]


def ray_service(config: ClusterConfig) -> dict[str, Any]:
    """The RayService, of a config as it holds inside the pods."""
    where = section(config)
    workers = groups(config)
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"labels": labels(config), "name": config.name, "namespace": where.namespace},
        "spec": {
            "excludeHeadPodFromServeSvc": True,
            "rayClusterConfig": {
                "authOptions": {"mode": "token", "secretName": where.ray_token_secret},
                "autoscalerOptions": autoscaler(config),
                "enableInTreeAutoscaling": True,
                "gcsFaultToleranceOptions": {
                    "redisAddress": where.redis_address,
                    "redisPassword": {
                        "valueFrom": {"secretKeyRef": {"key": "password", "name": where.redis_secret}},
                    },
                },
                "headGroupSpec": {
                    "rayStartParams": {
                        "dashboard-host": "0.0.0.0",  # noqa: S104 - for KubeRay, which a network policy lets in
                        "num-cpus": "0",
                        "object-store-memory": str(config.ray.object_store_bytes),
                    },
                    "serviceType": "ClusterIP",
                    "template": head_template(config),
                },
                "rayVersion": RAY_VERSION,
                "workerGroupSpecs": [_worker_group(config, group) for group in workers],
            },
            "rayClusterDeletionDelaySeconds": max(group.grace_s for group in workers) + OLD_CLUSTER_S,
            "serveConfigV2": dump(serve_config(config, placed=True)),
            "upgradeStrategy": {"type": "NewCluster"},
        },
    }


def _worker_group(config: ClusterConfig, group: Group) -> dict[str, Any]:
    # All of it here: KubeRay refuses a group that names some among the parameters of `ray start`.
    resources = {"CPU": str(max(1, math.ceil(group.millicpus / 1000))), group.resource: "1"}
    if group.gpus:
        resources["GPU"] = str(group.gpus)
    return {
        "groupName": group.name,
        "maxReplicas": group.max + SURGE,
        "minReplicas": group.min,
        "rayStartParams": {"object-store-memory": str(config.ray.object_store_bytes)},
        "replicas": group.min,
        "resources": resources,
        "template": worker_template(config, group),
    }
