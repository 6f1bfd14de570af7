from __future__ import annotations

from typing import Any

import pytest

from tests.unit.cluster.config.test_checks import base, paths

SIMULATED = {"type": "simulated", "simulated": {"experts": {"layers": 2, "experts": 4, "top_k": 2}}}


def with_pools(pools: dict[str, Any], **model: Any) -> dict[str, Any]:
    config = base()
    config["models"]["moe"] |= {"pools": pools, **model}
    return config


@pytest.mark.parametrize("model", [{}, {"engine": SIMULATED}])
def test_pools_of_a_sparse_model_are_right(model: dict[str, Any]) -> None:
    assert paths(with_pools({"count": 4, "min": 1, "max": 3, "cpu_cores": "0-1", "threads": 2}, **model)) == set()


@pytest.mark.parametrize(
    ("pools", "model", "expected"),
    [
        ({}, {"kind": "dense"}, ""),
        ({}, {"engine": {"type": "simulated"}}, ""),
        ({"count": 5}, {"engine": SIMULATED}, ".count"),
        ({"min": 3, "max": 2}, {}, ".min"),
        ({"low": 0.8, "high": 0.8}, {}, ".low"),
        ({}, {"replicas": {"gpus": 1}}, ""),
        ({"cpu_cores": "3-1"}, {}, ".cpu_cores"),
        ({"cpu_cores": "0", "threads": 2}, {}, ".threads"),
    ],
)
def test_a_mistake_is_named(pools: dict[str, Any], model: dict[str, Any], expected: str) -> None:
    assert f"models.moe.pools{expected}" in paths(with_pools(pools, **model))


@pytest.mark.parametrize("setting", [{"quantization": "fp8"}, {"kv_second_engine": True}])
def test_an_engine_setting_that_pools_do_not_take_is_named(setting: dict[str, Any]) -> None:
    (name,) = setting
    assert paths(with_pools({}, engine=setting)) == {f"models.moe.engine.{name}"}
