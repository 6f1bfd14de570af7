"""What is unsafe, or cannot work, in a config that is to run on Kubernetes. Each mistake says how to mend it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from cluster.config.cluster import ClusterConfig
from cluster.config.deployment import PROBE_FAILURES, PROBE_PERIOD_S
from cluster.config.host import is_loopback
from cluster.config.mistakes import Mistake
from cluster.config.model import ModelConfig

MAX_NAME: Final = 41
"""Characters of a cluster's name: KubeRay makes longer ones of it, and Kubernetes ends them at 63."""

MAX_GROUP: Final = 50
"""Characters of the name of a worker group."""

FIRST_UNPRIVILEGED_PORT: Final = 1024
LEAST_LAME_DUCK_S: Final = PROBE_PERIOD_S * (PROBE_FAILURES + 1)
"""Seconds after which Kubernetes has noticed that a pod takes nothing any more, and all nodes have been told."""
_NAME: Final = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?$")
_ENCRYPTED: Final = re.compile(r"[?&]sslmode=(require|verify-ca|verify-full)(&|$)")
_COMMIT: Final = re.compile(r"@[0-9a-f]{40}$")


def check_deployment(config: ClusterConfig) -> Iterator[Mistake]:
    """Mistakes of a config that are none on a machine of one's own."""
    yield from _check_section(config)
    yield from _check_ingress(config)
    yield from _check_state(config)
    seen: dict[str, str] = {}
    for name, model in config.models.items():
        yield from _check_model(f"models.{name}", model)
        group = group_name(name)
        if group in seen:
            yield Mistake(f"models.{name}", f"Kubernetes cannot tell it from {seen[group]}", "rename the model")
        elif len(group) > MAX_GROUP:
            yield Mistake(f"models.{name}", f"this name is longer than {MAX_GROUP - 6} characters", "rename the model")
        seen[group] = name


def group_name(model: str) -> str:
    """The worker group of a model: its name as Kubernetes takes one."""
    return "model-" + re.sub(r"[^a-z0-9]+", "-", model).strip("-")


def _check_section(config: ClusterConfig) -> Iterator[Mistake]:
    deployment = config.deployment
    if len(config.name) > MAX_NAME:
        yield Mistake("name", f"this is longer than {MAX_NAME} characters", "shorten it")
    if not _NAME.match(config.name):
        yield Mistake("name", "Kubernetes takes no such name", "have it start with a letter, and not end with `-`")
    if deployment is None:
        yield Mistake(
            "deployment", "the config does not say what runs where", "add deployment.image and deployment.redis_address"
        )
        return
    for field in ("image", "gpu_image"):
        image = getattr(deployment, field)
        if image is not None and image.endswith(":latest"):
            yield Mistake(
                f"deployment.{field}", "`latest` is another image tomorrow", "name a version, or better a digest"
            )
    uses_gpus = any(model.replicas.gpus for model in config.models.values())
    if uses_gpus and deployment.gpu_image is None:
        yield Mistake("deployment.gpu_image", "some replicas compute on GPUs", "name the image that is built for them")
    if config.telemetry.traces == "otlp" and deployment.otlp_endpoint is None:
        yield Mistake(
            "deployment.otlp_endpoint",
            "traces are to go to a collector, but to which",
            "name it, or set telemetry.traces to off",
        )


def _check_ingress(config: ClusterConfig) -> Iterator[Mistake]:
    if is_loopback(config.ingress.host):
        yield Mistake(
            "ingress.host", "nobody but the pod itself reaches it", "set it to 0.0.0.0; keys are asked for then"
        )
    if config.ingress.port < FIRST_UNPRIVILEGED_PORT:
        yield Mistake("ingress.port", "only root may listen there, and nothing runs as root", "set it to 8000")
    if config.ingress.lame_duck_s < LEAST_LAME_DUCK_S:
        yield Mistake(
            "ingress.lame_duck_s", "Kubernetes would still send requests to an ingress that has stopped",
            f"set it to {LEAST_LAME_DUCK_S}, or more",
        )  # fmt: skip
    if not config.keys_required and not is_loopback(config.ingress.host):
        yield Mistake("keys.required", "everybody could ask", "set it to true, or leave it out")
    if config.keys.path is not None:
        yield Mistake("keys.path", "keys come from deployment.keys_secret", "leave it out")


def _check_state(config: ClusterConfig) -> Iterator[Mistake]:
    if config.telemetry.traces == "store":
        yield Mistake(
            "telemetry.traces", "every pod would keep its own, and lose it when it goes", "set it to otlp, or to off"
        )
    if config.records.enabled and config.records.url is None:
        yield Mistake(
            "records.url", "every pod would write a file of its own, and lose it when it goes",
            "name a PostgreSQL database, or set records.enabled to false",
        )  # fmt: skip
    if config.records.password_file is not None:
        yield Mistake("records.password_file", "the file is not in the image", "use records.password_env")
    if config.records.url is not None and not _ENCRYPTED.search(config.records.url):
        yield Mistake(
            "records.url", "what is written there would go over the network unencrypted", "add ?sslmode=require"
        )
    if (
        config.records.url is not None
        and "sslmode=verify-" in config.records.url
        and "sslrootcert=" not in config.records.url
    ):
        yield Mistake(
            "records.url",
            "the database's certificate is to be checked, and no pod has the authority's",
            "add &sslrootcert=PATH of a file that your image has, or set sslmode=require",
        )
    if config.ray.address not in (None, "auto"):
        yield Mistake("ray.address", "KubeRay starts the Ray cluster", "leave it out")
    if config.ray.num_cpus is not None:
        yield Mistake("ray.num_cpus", "what a node offers follows from its replica", "leave it out")
    if config.ray.state_dir is not None:
        yield Mistake("ray.state_dir", "the folder of the state is a volume of the pod", "leave it out")


def _check_model(path: str, model: ModelConfig) -> Iterator[Mistake]:
    replicas = model.replicas
    if replicas.memory_bytes is None:
        yield Mistake(
            f"{path}.replicas.memory_bytes", "without a bound one replica takes the memory of its whole node",
            "set what a replica needs: weights, KV cache, and two GiB",
        )  # fmt: skip
    for section, cores in (("replicas", replicas.cpu_cores), ("pools", model.pools and model.pools.cpu_cores)):
        if cores is not None:
            yield Mistake(f"{path}.{section}.cpu_cores", "Kubernetes decides on the cores of a pod", "leave it out")
    if replicas.gpus != int(replicas.gpus):
        yield Mistake(f"{path}.replicas.gpus", "a pod gets whole GPUs", "round it up")
    if replicas.cpus <= 0:
        yield Mistake(f"{path}.replicas.cpus", "a pod that asks for no core gets none", "set what a replica needs")
    if model.pools is not None and model.pools.memory_bytes is None:
        yield Mistake(
            f"{path}.pools.memory_bytes", "without a bound a pool takes the memory of its whole node",
            "set what the experts of all pools may take",
        )  # fmt: skip
    yield from _check_files(path, model)
    if model.upstream is not None and is_loopback(urlsplit(model.upstream.base_url).hostname or ""):
        yield Mistake(
            f"{path}.upstream.base_url", "in a pod, loopback is the pod itself", "name the server, over https"
        )


def _check_files(path: str, model: ModelConfig) -> Iterator[Mistake]:
    source = model.source or ""
    if source.startswith("hf:") and not _COMMIT.search(source):
        yield Mistake(
            f"{path}.source", "a branch moves, so two pods could serve different weights",
            "put the commit (40 hexadecimal digits) after the @",
        )  # fmt: skip
    if source.startswith("path:"):
        yield Mistake(f"{path}.source", "this folder is not in the pod", "use hf:ORG/NAME@COMMIT")
    if model.engine.chat_template is not None:
        yield Mistake(f"{path}.engine.chat_template", "this file is not in the pod", "use the template of the model")
