from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from cluster.config.changes import Way, plan_changes, way_of_model_field
from cluster.config.cluster import ClusterConfig
from cluster.config.model import ModelConfig
from cluster.config.scaling import ScalingConfig

MODEL = {"kind": "dense", "roles": ["strong", "fast"], "source": "embedded:dense"}
OTHER = {"kind": "mini", "roles": ["helper"], "source": "embedded:mini"}
QUALITY = {"agreement": 0.99, "kl": 0.01, "consistency": 0.8}


def config(**changes: Any) -> ClusterConfig:
    return ClusterConfig.model_validate({"models": {"a.b": MODEL}, "routing": {"code_role": "strong"}} | changes)


OLD = config()


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (config(routing={"code_role": "strong", "switch_margin": 0.2}), {"routing.switch_margin": Way.LIVE}),
        (config(contracts={"strong": {"max_prompt_tokens": 10, "max_completion_tokens": 9}}), {"contracts.strong": Way.LIVE}),
        (config(ingress={"limits": {"max_stop": 1}}), {"ingress.limits.max_stop": Way.LIVE}),
        (config(precision={"enter": {"kv_usage": 0.8}}), {"precision.enter.kv_usage": Way.LIVE}),
        (config(precision={"levels": ["shed"]}), {"precision.levels": Way.LIVE}),
        (config(models={"a.b": MODEL | {"precision": {"pinned": 2}}}), {"models.a.b.precision.pinned": Way.LIVE}),
        (
            config(models={"a.b": MODEL | {"precision": {"kv_quality": {"fp8": QUALITY}}}}),
            {"models.a.b.precision.kv_quality.fp8": Way.LIVE},
        ),
        (config(experts={"half_life_s": 5}), {"experts.half_life_s": Way.LIVE}),
        (config(ingress={"port": 8001}), {"ingress.port": Way.RESTART}),
        (config(telemetry={"log_level": "debug"}), {"telemetry.log_level": Way.RESTART}),
        (config(name="other"), {"name": Way.RESTART}),
        (config(models={"a.b": MODEL | {"replicas": {"max": 2}}}), {"models.a.b.replicas.max": Way.SCALE}),
        (config(models={"a.b": MODEL | {"replicas": {"cpus": 2}}}), {"models.a.b.replicas.cpus": Way.REPLACE}),
        (config(models={"a.b": MODEL | {"engine": {"max_num_seqs": 3}}}), {"models.a.b.engine.max_num_seqs": Way.REPLACE}),
        (config(models={"a.b": MODEL, "a": OTHER}), {"models.a": Way.ADD}),
    ],
)  # fmt: skip
def test_each_field_has_one_way(new: ClusterConfig, expected: dict[str, Way]) -> None:
    plan = plan_changes(OLD, new)
    assert {step.change.path: step.way for step in plan.steps} == expected
    assert [step.change.path for step in plan.refused] == [path for path, way in expected.items() if way is Way.RESTART]


def test_a_model_that_goes_and_the_same_config() -> None:
    both = config(models={"a.b": MODEL, "a": OTHER})
    assert plan_changes(both, OLD).models(Way.REMOVE) == ("a",)
    assert plan_changes(OLD, both).models(Way.ADD) == ("a",)
    assert plan_changes(both, both).steps == ()


@pytest.mark.parametrize("other", ["a", "a.b.replicas", "a.b.c"])
def test_names_that_begin_like_others_are_told_apart(other: str) -> None:
    both = config(models={"a.b": MODEL, other: OTHER})
    changed = config(models={"a.b": MODEL, other: OTHER | {"replicas": {"max": 2, "nice": 3}}})
    assert plan_changes(both, changed).models(Way.REPLACE) == (other,)
    changed = config(models={"a.b": MODEL | {"replicas": {"max": 2}}, other: OTHER})
    plan = plan_changes(both, changed)
    assert [(step.model, step.way) for step in plan.steps] == [("a.b", Way.SCALE)]
    assert plan_changes(OLD, both).models(Way.ADD) == (other,)
    assert plan_changes(both, OLD).models(Way.REMOVE) == (other,)


def test_a_model_that_is_replaced_is_not_scaled_beside_it() -> None:
    new = config(models={"a.b": MODEL | {"replicas": {"max": 2, "nice": 3}}})
    plan = plan_changes(OLD, new)
    assert plan.models(Way.REPLACE) == ("a.b",)
    assert plan.models(Way.SCALE) == ()


def leaves(section: type[BaseModel], path: str = "") -> Iterator[str]:
    """Paths of all fields of a section, those of its sections instead of these."""
    for name, field in section.model_fields.items():
        kinds = [
            kind for kind in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(kind, type)
        ]
        below = [kind for kind in kinds if issubclass(kind, BaseModel)]
        if below:
            for kind in below:
                yield from leaves(kind, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def test_every_field_of_a_model_is_known_and_most_need_new_replicas() -> None:
    ways = {path: way_of_model_field(path) for path in leaves(ModelConfig)}
    assert {path for path, way in ways.items() if way is Way.LIVE} == {
        "roles",
        "price_per_million_tokens",
        "precision.twin",
        "precision.pinned",
        *(f"precision.kv_quality.{name}" for name in QUALITY),
    }
    assert {path for path, way in ways.items() if way is Way.SCALE} == {
        f"replicas.{name}"
        for name in (
            "min",
            "max",
            "target_ongoing_requests",
            "max_ongoing_requests",
            "max_queued_requests",
            "drain_timeout_s",
            *(f"scaling.{field}" for field in ScalingConfig.model_fields),
        )
    }
    assert len(ways) > 40
    assert set(ways.values()) == {Way.LIVE, Way.SCALE, Way.REPLACE}
