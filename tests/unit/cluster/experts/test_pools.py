from __future__ import annotations

import json
from typing import Any

import pytest

from cluster.experts.pools import Pool, PoolMap, PoolMapError, Replica, parse_pool_map, split_evenly


def a_map() -> dict[str, Any]:
    return {
        "version": 1,
        "pools": [
            {"name": "a", "replicas": [{"name": "a0", "address": "unix:/run/a"}], "holds": {"0": [0, 1], "3": [2]}},
            {"name": "b", "replicas": [{"name": "b0", "address": "tcp:10.0.0.1:7000"}], "holds": {"0": [1, 2]}},
        ],
    }


def test_a_map_survives_its_json() -> None:
    parsed = parse_pool_map(json.dumps(a_map()))
    assert parsed.pools[0] == Pool("a", (Replica("a0", "unix:/run/a"),), {0: frozenset({0, 1}), 3: frozenset({2})})
    assert parse_pool_map(parsed.to_json()) == parsed


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["version"], -1, "needs a version"),
        (["pools"], [], "1 to 256 pools"),
        (["pools", 1, "name"], "../a", "letters, digits"),
        (["pools", 1, "name"], ".a", "letters, digits"),
        (["pools", 1, "name"], "a", "pool 'a' is in the pool map twice"),
        (["pools", 1, "replicas", 0, "name"], "a0", "replica 'a0' is in"),
        (["pools", 1, "replicas", 0, "address"], "unix:/run/a", "address 'unix:/run/a' is in"),
        (["pools", 1, "replicas", 0, "address"], "ipc:///x", "needs an address"),
        (["pools", 0, "holds"], {}, "holds no expert"),
        (["pools", 0, "holds"], {"x": [0]}, "no number below"),
        (["pools", 0, "holds"], {"0": [True]}, "expert numbers"),
    ],
)
def test_a_bad_map_is_refused_by_name(path: list[Any], value: Any, said: str) -> None:
    bad = whole = a_map()
    for key in path[:-1]:
        bad = bad[key]
    bad[path[-1]] = value
    with pytest.raises(PoolMapError, match=said):
        parse_pool_map(json.dumps(whole))


def test_what_nobody_holds_is_named() -> None:
    parsed = parse_pool_map(json.dumps(a_map()))
    with pytest.raises(PoolMapError, match="layer 0 expert 3, layer 3 expert 0"):
        parsed.require([0, 3], 4)
    with pytest.raises(PoolMapError, match="does not have"):
        PoolMap(1, (Pool("a", (), {0: frozenset({0, 1})}),)).require([0], 1)


def test_experts_are_shared_out_evenly() -> None:
    shared = split_evenly([0, 5], 5, 2)
    assert shared == [{0: frozenset({0, 2, 4}), 5: frozenset({0, 2, 4})}, {0: frozenset({1, 3}), 5: frozenset({1, 3})}]
