"""The pods of a cluster on Kubernetes: nobody is root, nothing is written but to volumes, and no account's token is mounted."""

from __future__ import annotations

import math
from typing import Any, Final

from cluster.config.cluster import ClusterConfig
from cluster.config.deployment import PROBE_FAILURES, PROBE_PERIOD_S
from deployments.render.layout import (
    CACHE,
    CONFIG,
    GRACE_SLACK_S,
    HEAD_BYTES,
    HEAD_MILLICPUS,
    HOME,
    KEYS,
    RAY_BYTES,
    RAY_MILLICPUS,
    STATE,
    USER,
    Group,
    environment,
    section,
)

Object = dict[str, Any]
"""A Kubernetes object, or a part of one, as JSON values."""

GPU: Final = "nvidia.com/gpu"
GROUP_LABEL: Final = "pointsman.dev/group"
HEAD: Final = "head"
AGENT_PORT: Final = 52365
DASHBOARD_PORT: Final = 8265
GCS_PORT: Final = 6379
SHM_BYTES: Final = 2**30
"""Bytes of shared memory beside the object store: GPUs of one replica talk through it."""
START_SLACK_S: Final = 600
"""Seconds that a first start may take beyond loading the models: nodes are found, and images pulled."""
TOKEN_FOLDER: Final = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 - where Kubernetes looks for it


def labels(config: ClusterConfig, group: str | None = None) -> dict[str, str]:
    """Labels of every object, and of the pods of a group."""
    common = {"app.kubernetes.io/name": "pointsman", "app.kubernetes.io/instance": config.name}
    return common if group is None else common | {GROUP_LABEL: group}


def worker_template(config: ClusterConfig, group: Group) -> Object:
    """The pod template of a group of workers."""
    millicpus = group.millicpus + RAY_MILLICPUS
    container = _container(config, "ray-worker", group.image, group.variables)
    container["resources"] = _resources(millicpus, group.memory_bytes + RAY_BYTES, group.gpus)
    container["livenessProbe"] = _probe(AGENT_PORT, "/api/local_raylet_healthz", failures=120)
    container["readinessProbe"] = _probe(AGENT_PORT, "/api/local_raylet_healthz", failures=PROBE_FAILURES)
    drain = ["python", "-m", "deployments.render.drain", "--seconds", str(group.grace_s - GRACE_SLACK_S)]
    container["lifecycle"] = {"preStop": {"exec": {"command": drain}}}
    spec = _spec(config, container, group.grace_s)
    if group.name == "ingress":
        port = config.ingress.port
        container["ports"] = [{"containerPort": port, "name": "http", "protocol": "TCP"}]
        # Once every model has answered for itself: a pod that nobody can be served by gets no request. Later on, one
        # model that is away is no reason to send the requests of all others away.
        container["startupProbe"] = _probe(port, "/readyz", failures=math.ceil((group.start_s + START_SLACK_S) / 5))
        container["readinessProbe"] = _probe(port, "/readyz?exclude=models", failures=PROBE_FAILURES)
        container["volumeMounts"].append({"mountPath": KEYS, "name": "keys", "readOnly": True})
        secret = {"secretName": section(config).keys_secret, "defaultMode": 0o440}
        spec["volumes"].append({"name": "keys", "secret": secret})
    if group.gpus:
        spec["tolerations"] = [{"effect": "NoSchedule", "key": GPU, "operator": "Exists"}]
    # KubeRay brings another number of replicas to a new cluster alone, and tells a new one by its pods: so they say it.
    annotations = {"pointsman.dev/replicas": f"{group.min}-{group.max}"}
    return {"metadata": {"labels": labels(config, group.name), "annotations": annotations}, "spec": spec}


def head_template(config: ClusterConfig) -> Object:
    """The pod template of the head: Ray's control plane, no replica. Before it starts it has every model's files put in place."""
    where = section(config)
    container = _container(config, "ray-head", where.image, ())
    container["resources"] = _resources(HEAD_MILLICPUS, HEAD_BYTES, 0)
    container["ports"] = [
        {"containerPort": GCS_PORT, "name": "gcs-server", "protocol": "TCP"},
        {"containerPort": DASHBOARD_PORT, "name": "dashboard", "protocol": "TCP"},
        # KubeRay asks for it. Nothing listens there: the ingress has pods of its own.
        {"containerPort": config.ingress.port, "name": "serve", "protocol": "TCP"},
    ]
    container["livenessProbe"] = _probe(AGENT_PORT, "/api/local_raylet_healthz", failures=120)
    container["readinessProbe"] = _probe(DASHBOARD_PORT, "/api/gcs_healthz", failures=PROBE_FAILURES)
    spec = _spec(config, container, 2 * GRACE_SLACK_S)
    files = _container(config, "models", where.image, ())
    files["command"] = ["pointsman", "models", "build", "--config", f"{CONFIG}/cluster.yaml"]
    files["env"] = [one for one in files["env"] if one["name"] != "HF_HUB_OFFLINE"]
    files["env"].append(_from_secret("HF_TOKEN", where.environment_secret, "HF_TOKEN", optional=True))
    files["resources"] = container["resources"]
    files["volumeMounts"] = [
        {key: value for key, value in mount.items() if key != "readOnly"} if mount["name"] == "cache" else mount
        for mount in files["volumeMounts"]
    ]
    spec["initContainers"] = [files]
    spec["volumes"].append({"name": "autoscaler-token", "projected": _token()})
    # The head brings the models' files: another model, or another revision of one, wants another head.
    sources = {name: model.source for name, model in sorted(config.models.items()) if model.source is not None}
    annotations = {"pointsman.dev/models": "".join(f"{name}={source}," for name, source in sources.items())}
    return {"metadata": {"labels": labels(config, HEAD), "annotations": annotations}, "spec": spec}


def autoscaler(config: ClusterConfig) -> Object:
    """Options of the autoscaler beside the head: it alone gets a token of Kubernetes, since it alone makes pods."""
    return {
        "version": "v2",
        "env": [
            {"name": "RAY_AUTH_MODE", "value": "token"},
            _from_secret("RAY_AUTH_TOKEN", section(config).ray_token_secret, "auth_token"),
        ],
        "resources": _resources(500, 2**30, 0),
        "securityContext": _restricted(),
        "volumeMounts": [
            {"mountPath": TOKEN_FOLDER, "name": "autoscaler-token", "readOnly": True},
            {"mountPath": "/tmp", "name": "tmp"},  # noqa: S108 - a volume of the pod alone
        ],
    }


def _spec(config: ClusterConfig, container: Object, grace_s: int) -> Object:
    shm = config.ray.object_store_bytes + SHM_BYTES
    volumes: list[Object] = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": str(shm)}},
        {"name": "home", "emptyDir": {}},
        {"name": "state", "emptyDir": {}},
        {"name": "cache", "persistentVolumeClaim": {"claimName": f"{config.name}-models"}},
        {"name": "config", "configMap": {"name": f"{config.name}-config"}},
    ]
    if has_pools(config):
        secret = {"secretName": section(config).pools_secret, "defaultMode": 0o440}
        volumes += [{"name": "pools", "emptyDir": {}}, {"name": "pools-secret", "secret": secret}]
    return {
        "automountServiceAccountToken": False,
        "containers": [container],
        "enableServiceLinks": False,
        "securityContext": {
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "runAsGroup": USER,
            "runAsNonRoot": True,
            "runAsUser": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": grace_s,
        "volumes": volumes,
    }


def _container(config: ClusterConfig, name: str, image: str, variables: tuple[str, ...]) -> Object:
    where = section(config)
    fixed = [{"name": name, "value": value} for name, value in sorted(environment(config).items())]
    secret = [_from_secret("RAY_AUTH_TOKEN", where.ray_token_secret, "auth_token")]
    secret += [_from_secret(variable, where.environment_secret, variable) for variable in variables]
    mounts: list[Object] = [
        {"mountPath": "/tmp", "name": "tmp"},  # noqa: S108 - a volume of the pod alone
        {"mountPath": "/dev/shm", "name": "shm"},  # noqa: S108
        {"mountPath": HOME, "name": "home"},
        {"mountPath": STATE, "name": "state"},
        {"mountPath": CACHE, "name": "cache", "readOnly": True},
        {"mountPath": CONFIG, "name": "config", "readOnly": True},
    ]
    if has_pools(config):
        mounts += [
            {"mountPath": f"{STATE}/pools", "name": "pools"},
            {"mountPath": f"{STATE}/pools/secret", "name": "pools-secret", "readOnly": True, "subPath": "secret"},
        ]
    return {
        "env": fixed + secret,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "name": name,
        "securityContext": _restricted(),
        "volumeMounts": mounts,
    }


def has_pools(config: ClusterConfig) -> bool:
    """Whether a model has its experts in pools."""
    return any(model.pools is not None for model in config.models.values())


def _restricted() -> Object:
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
    }


def _resources(millicpus: int, memory_bytes: int, gpus: int) -> Object:
    # Requests are what limits are: Kubernetes ends pods that may take more than they asked for first.
    quantities = {"cpu": f"{millicpus}m", "memory": str(memory_bytes)} | ({GPU: str(gpus)} if gpus else {})
    return {"limits": quantities, "requests": dict(quantities)}


def _probe(port: int, path: str, failures: int) -> Object:
    return {
        "failureThreshold": failures,
        "httpGet": {"path": path, "port": port},
        "periodSeconds": PROBE_PERIOD_S,
        "timeoutSeconds": 3,
    }


def _from_secret(variable: str, secret: str, key: str, *, optional: bool = False) -> Object:
    reference: Object = {"key": key, "name": secret}
    if optional:
        reference["optional"] = True
    return {"name": variable, "valueFrom": {"secretKeyRef": reference}}


def _token() -> Object:
    certificate = {"items": [{"key": "ca.crt", "path": "ca.crt"}], "name": "kube-root-ca.crt"}
    namespace = {"items": [{"fieldRef": {"fieldPath": "metadata.namespace"}, "path": "namespace"}]}
    return {
        "defaultMode": 0o440,
        "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": certificate},
            {"downwardAPI": namespace},
        ],
    }
