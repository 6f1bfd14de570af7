"""Checks that look at more than one field of a config. Each yields mistakes with the path of the field to change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from cluster.config.base import AUTO, EMBEDDING_ROLE, KNOWN_ROLES
from cluster.config.check_contracts import check_contracts
from cluster.config.check_feedback import check_feedback
from cluster.config.check_models import check_model
from cluster.config.check_precision import check_precision
from cluster.config.experts import check_experts
from cluster.config.host import is_loopback
from cluster.config.mistakes import Mistake
from cluster.config.records import check_records
from cluster.routing.scorers import scorer_names

if TYPE_CHECKING:
    from cluster.config.cluster import ClusterConfig


def check_cluster(config: ClusterConfig) -> Iterator[Mistake]:
    """All mistakes that show only when fields are seen together."""
    roles = {role for model in config.models.values() for role in model.roles}
    for name, model in config.models.items():
        yield from _check_name(f"models.{name}", name, roles)
        yield from check_model(f"models.{name}", model)
    yield from check_contracts(config, roles)
    yield from _check_routing(config, roles)
    yield from check_feedback(config, roles)
    yield from check_precision(config)
    yield from check_experts(config)
    yield from _check_ingress(config)
    yield from _check_ray(config)
    yield from check_records(config)


def _check_name(path: str, name: str, roles: set[str]) -> Iterator[Mistake]:
    if name == AUTO:
        yield Mistake(path, "`auto` is not a model name: it asks for the routing rules", "rename the model")
    elif name in KNOWN_ROLES or name in roles:
        yield Mistake(path, "this model has the name of a role, so requests could mean either", "rename the model")


def _check_routing(config: ClusterConfig, roles: set[str]) -> Iterator[Mistake]:
    routing = config.routing
    chosen = (
        ("fast_role", routing.fast_role),
        ("code_role", routing.code_role),
        ("default_role", routing.default_role),
    )
    for position, rule in enumerate(routing.rules or ()):
        path = f"routing.rules.{position}"
        if rule.role is None and rule.sampling is None:
            yield Mistake(path, "this rule decides nothing", "give it a role or a sampling mode")
        elif rule.role == EMBEDDING_ROLE:
            yield Mistake(f"{path}.role", "the embedding role cannot chat", "name a role of a chat model")
        elif rule.role is not None and rule.role not in roles:
            yield Mistake(
                f"{path}.role", f"no model has the role {rule.role}", "add it to a model's roles or name another"
            )
        if rule.name in {earlier.name for earlier in (routing.rules or ())[:position]}:
            yield Mistake(f"{path}.name", "an earlier rule has this name", "give each rule a name of its own")
    standing = config.models_of(routing.default_role)
    if standing and all(config.models[name].replicas.min == 0 for name in standing):
        yield Mistake(
            f"models.{standing[0]}.replicas.min",
            f"no model of the default role {routing.default_role} keeps a replica, so a request that names nothing may find none",
            "set it to 1",
        )
    known = scorer_names()
    for name in routing.scorers:
        if name not in known:
            yield Mistake(f"routing.scorers.{name}", "there is no such scorer", f"there are {', '.join(known)}")
    for field, role in chosen:
        if role == EMBEDDING_ROLE:
            yield Mistake(f"routing.{field}", "the embedding role cannot chat", "name a role of a chat model")
        elif role not in roles:
            yield Mistake(
                f"routing.{field}", f"no model has the role {role}", "add it to a model's roles or name another"
            )


def _check_ingress(config: ClusterConfig) -> Iterator[Mistake]:
    if config.keys.required is False and not is_loopback(config.ingress.host):
        yield Mistake(
            "keys.required",
            "the ingress listens beyond loopback, so keys cannot be switched off",
            "set keys.required to true and make a key with `pointsman keys add`, or set ingress.host to 127.0.0.1",
        )
    limits = config.ingress.limits
    for field, size in (("prompt_bytes", limits.prompt_bytes), ("max_schema_bytes", limits.max_schema_bytes)):
        if size > limits.body_bytes:
            yield Mistake(f"ingress.limits.{field}", "this is more than body_bytes, so it bounds nothing", "lower it")
    if limits.body_bytes > limits.body_bytes_at_once:
        yield Mistake(
            "ingress.limits.body_bytes", "this is more than body_bytes_at_once, so such a body never fits", "lower it"
        )


SETTINGS_OF_OWN_RAY: Final = ("num_cpus", "object_store_bytes")
"""Of a Ray cluster that is started here."""


def _check_ray(config: ClusterConfig) -> Iterator[Mistake]:
    ray = config.ray
    if ray.address is None:
        return
    for field in SETTINGS_OF_OWN_RAY:
        if field in ray.model_fields_set and getattr(ray, field) is not None:
            yield Mistake(
                f"ray.{field}", "this is for an own Ray cluster, but ray.address names another", "leave it out"
            )
