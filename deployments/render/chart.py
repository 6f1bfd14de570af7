"""The Helm chart of a cluster: fixed templates, and values that are the cluster's config."""

from __future__ import annotations

import math
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from cluster.config.cluster import ClusterConfig
from cluster.config.contract import DEFAULT_TIMEOUT_S
from cluster.config.deployment import PROBE_FAILURES, PROBE_PERIOD_S
from deployments.render import layout, nulls, pods
from deployments.render.layout import deployed, environment
from deployments.render.rayservice import OLD_CLUSTER_S, RAY_VERSION
from deployments.render.serve_config import ENTRY, INGRESS_CPUS, QUIET, model_nulls
from deployments.render.text import dump

TEMPLATES: Final = Path(__file__).parent / "chart"

_VALUES: Final = """# `config` is the config of the cluster, every default filled in; its fields are explained in docs/configuration.md. Change it
# here, or render the chart again from a changed file, which checks it first: Helm itself does not.
"""


def write_chart(config: ClusterConfig, folder: Path) -> list[Path]:
    """Write the chart and return its files. Raises `ConfigError` that names everything unsafe, and `OSError`."""
    inside = deployed(config)
    written = []
    (folder / "templates").mkdir(parents=True, exist_ok=True)
    for source in sorted(TEMPLATES.iterdir()):
        target = folder / "templates" / source.name
        shutil.copyfile(source, target)
        written.append(target)
    texts = {"Chart.yaml": dump(chart_metadata(inside)), "values.yaml": _VALUES + dump(chart_values(inside))}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
        written.append(folder / name)
    return sorted(written)


def chart_metadata(config: ClusterConfig) -> dict[str, Any]:
    """`Chart.yaml`."""
    return {
        "apiVersion": "v2",
        "name": config.name,
        "description": "A Pointsman cluster: dense, sparse and mini language models behind one endpoint",
        "type": "application",
        "version": version("pointsman"),
        "appVersion": version("pointsman"),
        "kubeVersion": ">=1.28.0-0",
    }


def chart_values(config: ClusterConfig) -> dict[str, Any]:
    """`values.yaml`, of a config as it holds inside the pods."""
    set_to_null = nulls.nulls(config)
    return {
        "config": nulls.document(config),
        # Helm drops every null: these fields are null, below `config` and below a model.
        "nulls": {"config": set_to_null, "models": {name: model_nulls(set_to_null, name) for name in config.models}},
        # Helm sorts models by name; which is first decides between equals.
        "order": list(config.models),
        "pods": {
            "agentPort": pods.AGENT_PORT,
            "cache": layout.CACHE,
            "configFolder": layout.CONFIG,
            "dashboardPort": pods.DASHBOARD_PORT,
            "defaultTimeoutSeconds": math.ceil(DEFAULT_TIMEOUT_S),
            "entry": ENTRY,
            "environment": environment(config),
            "gcsPort": pods.GCS_PORT,
            "graceSlackSeconds": layout.GRACE_SLACK_S,
            "headBytes": layout.HEAD_BYTES,
            "headMillicpus": layout.HEAD_MILLICPUS,
            "home": layout.HOME,
            "ingressBytes": layout.INGRESS_BYTES,
            "ingressCpus": INGRESS_CPUS,
            "ingressMillicpus": layout.INGRESS_MILLICPUS,
            "keys": layout.KEYS,
            "objectStoreBytes": config.ray.object_store_bytes,
            "oldClusterSeconds": OLD_CLUSTER_S,
            "probeFailures": PROBE_FAILURES,
            "probePeriodSeconds": PROBE_PERIOD_S,
            "rayBytes": layout.RAY_BYTES,
            "rayMillicpus": layout.RAY_MILLICPUS,
            "rayVersion": RAY_VERSION,
            "serveLogging": dict(QUIET),
            "shmBytes": pods.SHM_BYTES,
            "startSlackSeconds": pods.START_SLACK_S,
            "state": layout.STATE,
            "successorSeconds": layout.SUCCESSOR_S,
            "surge": layout.SURGE,
            "user": layout.USER,
        },
    }
