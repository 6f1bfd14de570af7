"""A thousand mutations of the shipped configs: each is refused, and the mistake names the field that was mutated."""

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.api.json_body import JsonValue
from cluster.config.load import parse_config
from cluster.config.mistakes import ConfigError

CLUSTERS = Path(__file__).parents[2] / "infra" / "clusters"
CANARY = "canary-7f3a"
Steps = tuple[str | int, ...]


def leaves(value: JsonValue, steps: Steps = ()) -> Iterator[Steps]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*steps, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, (*steps, index))
    else:
        yield steps


def sections(value: JsonValue, steps: Steps = ()) -> Iterator[Steps]:
    if isinstance(value, dict):
        yield steps
        for key, inner in value.items():
            yield from sections(inner, (*steps, key))


def holder_of(config: dict[str, Any], steps: Steps) -> dict[str | int, Any]:
    holder: Any = config
    for step in steps[:-1]:
        holder = holder[step]
    found: dict[str | int, Any] = holder
    return found


def mutate(config: dict[str, Any], rng: random.Random) -> str:
    """Mutates `config` in place. Returns the path that the mistake must name."""
    if rng.random() < 0.2:
        steps = (
            *rng.choice([s for s in sections(config) if s not in (("models",), ("contracts",))]),
            f"x{rng.randrange(999)}",
        )
        holder_of(config, steps)[steps[-1]] = rng.choice([1, "x", None, {}, []])
        return ".".join(map(str, steps))
    steps = rng.choice(list(leaves(config)))
    holder = holder_of(config, steps)
    old = holder[steps[-1]]
    wrong_types: list[Any] = [{"a": 1}, [[1]]]
    if isinstance(old, bool):
        wrong_types += ["yes", 2, CANARY, 0.5]
    elif isinstance(old, int | float):
        wrong_types += [-1, -(10**12), 10**30, f"{old}", CANARY, True, float("nan"), float("inf"), ""]
    else:
        wrong_types += [True, 17, 1.5, "", "\n", "\x00", f"{CANARY} ?/\\", "x" * 5000]
    holder[steps[-1]] = rng.choice(wrong_types)
    return ".".join(map(str, steps))


@pytest.mark.parametrize("name", ["local", "gpu"])
@pytest.mark.parametrize("part", range(5))
def test_every_mutation_is_refused_at_its_path(name: str, part: int) -> None:
    rng = random.Random(f"{name}-{part}")
    original = yaml.safe_load((CLUSTERS / f"{name}.yaml").read_text())
    for _ in range(100):
        config = copy.deepcopy(original)
        path = mutate(config, rng)
        with pytest.raises(ConfigError) as caught:
            parse_config(json.dumps(config), "mutated")
        found = {mistake.path for mistake in caught.value.mistakes}
        assert any(one == path or one.startswith(f"{path}.") for one in found), (path, found)
        assert CANARY not in str(caught.value)
