"""Who may talk to whom: nobody, but for what is listed here."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import urlsplit

from cluster.config.check_deployment import group_name
from cluster.config.cluster import ClusterConfig
from deployments.render.layout import section
from deployments.render.objects import metadata
from deployments.render.pods import DASHBOARD_PORT, HEAD, labels

Object = dict[str, Any]

POSTGRESQL_PORT: Final = 5432
HTTPS_PORTS: Final = (443, 6443)
"""Of servers outside, and of Kubernetes itself, which the autoscaler in the head's pod asks for pods."""


def network_policies(config: ClusterConfig) -> list[Object]:
    """All of them, of a config as it holds inside the pods. Servers outside are known by their port: a policy takes no names."""
    where = section(config)
    everyone = labels(config)
    gateway = _peer(where.gateway_namespace, {"app.kubernetes.io/name": where.gateway_app})
    metrics = _peer(where.metrics_namespace, {})
    operator = _peer(where.operator_namespace, {"app.kubernetes.io/name": "kuberay-operator"})
    made = [
        _policy(config, "deny", everyone, incoming=[], outgoing=[]),
        _policy(
            config,
            "inside",
            everyone,
            incoming=[{"from": [{"podSelector": {"matchLabels": everyone}}]}],
            outgoing=[{"to": [{"podSelector": {"matchLabels": everyone}}]}],
        ),
        _policy(config, "names", everyone, outgoing=[_names()]),
        _policy(
            config,
            "callers",
            labels(config, "ingress"),
            incoming=[{"from": [gateway, metrics], "ports": _ports(config.ingress.port)}],
        ),
        _policy(
            config, "operator", labels(config, HEAD), incoming=[{"from": [operator], "ports": _ports(DASHBOARD_PORT)}]
        ),
        _policy(
            config,
            "head-out",
            labels(config, HEAD),
            outgoing=[{"ports": _ports(*HTTPS_PORTS, int(where.redis_address.rpartition(":")[2]))}],
        ),
    ]
    if where.otlp_endpoint is not None:
        made.append(_policy(config, "out", everyone, outgoing=[{"ports": _ports(_port(where.otlp_endpoint, 4317))}]))
    made += [
        _policy(config, f"{group}-out", labels(config, group), outgoing=[{"ports": _ports(port)}])
        for group, port in _servers(config)
    ]
    return made


def _servers(config: ClusterConfig) -> list[tuple[str, int]]:
    """Groups that need a server outside, and its port: the records database, the servers behind external models."""
    found = []
    if config.records.url is not None:
        found.append(("ingress", _port(config.records.url, POSTGRESQL_PORT)))
    for name, model in config.models.items():
        if model.upstream is not None:
            found.append((group_name(name), _port(model.upstream.base_url, HTTPS_PORTS[0])))
    return found


def _port(url: str, default: int) -> int:
    # Not `urlsplit(...).port`: a database may be named by several hosts.
    found = re.search(r":([0-9]+)$", urlsplit(url).netloc)
    return default if found is None else int(found[1])


def _policy(
    config: ClusterConfig,
    name: str,
    pods: dict[str, str],
    incoming: list[Object] | None = None,
    outgoing: list[Object] | None = None,
) -> Object:
    spec: Object = {"podSelector": {"matchLabels": pods}}
    if incoming is not None:
        spec["ingress"] = incoming
    if outgoing is not None:
        spec["egress"] = outgoing
    spec["policyTypes"] = [
        *(["Ingress"] if incoming is not None else []),
        *(["Egress"] if outgoing is not None else []),
    ]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(config, name),
        "spec": spec,
    }


def _peer(namespace: str, pods: dict[str, str]) -> Object:
    peer: Object = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
    if pods:
        peer["podSelector"] = {"matchLabels": pods}
    return peer


def _ports(*ports: int) -> list[Object]:
    return [{"port": port, "protocol": "TCP"} for port in ports]


def _names() -> Object:
    names = {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}
    ports = [{"port": 53, "protocol": protocol} for protocol in ("TCP", "UDP")]
    return {"to": [{"namespaceSelector": names}], "ports": ports}
