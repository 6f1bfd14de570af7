"""Which Ray clusters are at this machine alone, and what Ray is told of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deployments.head.environment import is_at_loopback, ray_environment
from deployments.processes import CLUSTER_VARIABLE


@pytest.mark.parametrize(
    ("address", "at_loopback"),
    [
        (None, True),
        ("127.0.0.1:6379", True),
        ("localhost:6379", True),
        ("[::1]:6379", True),
        ("10.0.0.5:6379", False),
        ("ray-head.svc:6379", False),
        ("auto", False),
    ],
)
def test_where_a_ray_cluster_is_reached(address: str | None, at_loopback: bool) -> None:
    assert is_at_loopback(address) is at_loopback


def test_only_at_loopback_does_ray_stay_there() -> None:
    switch = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    assert ray_environment("c1", at_loopback=True)[switch] == "0"
    assert switch not in ray_environment("c1", at_loopback=False)
    assert ray_environment("c1", at_loopback=False)[CLUSTER_VARIABLE] == "c1"


def test_the_variables_that_every_node_needs_are_told() -> None:
    text = (Path(__file__).parents[3] / "docs" / "nodes.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)` \| `([\w.]+)` \|", text, re.MULTILINE))
    assert told == {
        name: value for name, value in ray_environment("c1", at_loopback=False).items() if name != CLUSTER_VARIABLE
    }
