"""What stands beside the RayService: its config, the volume of the models, the service of the ingress, disruption budgets."""

from __future__ import annotations

from typing import Any

from cluster.config.cluster import ClusterConfig
from deployments.render.layout import groups, section
from deployments.render.nulls import document
from deployments.render.pods import labels
from deployments.render.text import dump

Object = dict[str, Any]


def cluster_objects(config: ClusterConfig) -> list[Object]:
    """All of them, of a config as it holds inside the pods."""
    return [_config_map(config), _volume(config), _service(config), *_budgets(config)]


def metadata(config: ClusterConfig, name: str) -> Object:
    """The metadata of an object whose name starts with that of the cluster."""
    return {"labels": labels(config), "name": f"{config.name}-{name}", "namespace": section(config).namespace}


def _config_map(config: ClusterConfig) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(config, "config"),
        "data": {"cluster.yaml": dump(document(config))},
    }


def _volume(config: ClusterConfig) -> Object:
    where = section(config)
    spec: Object = {
        # One pod writes, all read, wherever they are.
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": str(where.cache_bytes)}},
    }
    if where.storage_class is not None:
        spec["storageClassName"] = where.storage_class
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata(config, "models"), "spec": spec}


def _service(config: ClusterConfig) -> Object:
    # Not the service that KubeRay makes, which leads to all workers. While a cluster replaces another this leads to both,
    # each as soon and as long as it can answer.
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(config, "ingress"),
        "spec": {
            "ports": [{"name": "http", "port": config.ingress.port, "protocol": "TCP", "targetPort": "http"}],
            "selector": labels(config, "ingress"),
            "type": "ClusterIP",
        },
    }


def _budgets(config: ClusterConfig) -> list[Object]:
    # A number of pods that stay, not one that may go: that Kubernetes works out for its own controllers alone. The last
    # replica stays until there is another one; a model that has none at rest has none to keep.
    return [
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": metadata(config, group.name),
            "spec": {
                "minAvailable": max(1, group.min - 1),
                "selector": {"matchLabels": labels(config, group.name)},
            },
        }
        for group in groups(config)
        if group.min
    ]
