from pathlib import Path

import pytest

from cluster.config.base import Kind
from cluster.config.diff import Change, config_diff
from cluster.config.document import render_document
from cluster.config.load import parse_config

ROOT = Path(__file__).parents[4]


def read(name: str) -> str:
    return (ROOT / "infra" / "clusters" / f"{name}.yaml").read_text()


def test_the_page_is_current() -> None:
    current = (ROOT / "docs" / "configuration.md").read_text()
    write = "python -c 'from cluster.config.document import render_document as r; print(r(), end=\"\")' > docs/configuration.md"
    assert current == render_document(), f"make it anew: {write}"


def test_the_local_cluster_is_safe_and_has_every_role() -> None:
    config = parse_config(read("local"), "local.yaml")
    assert {model.kind for model in config.models.values()} == {Kind.DENSE, Kind.SPARSE, Kind.MINI, Kind.ENCODER}
    assert all((model.source or "").startswith("embedded:") for model in config.models.values())
    for role in ("strong", "fast", "large_context", "verifier", "facts", "fluency", "embedding"):
        assert config.models_of(role)
    assert config.ingress.host == "127.0.0.1"
    assert not config.keys_required


def test_the_gpu_cluster_needs_keys_and_spreads_its_experts() -> None:
    config = parse_config(read("gpu"), "gpu.yaml")
    assert config.keys_required
    assert config.models["llama-70b"].engine.tensor_parallel_size == 4
    assert config.models["qwen3-30b-a3b"].engine.expert_parallel
    assert {model.kind for model in config.models.values()} == set(Kind)


def test_a_diff_names_each_changed_field() -> None:
    old = parse_config(read("local"), "old")
    changed = read("local").replace("port: 8000", "port: 8001").replace("roles: [fast]", "roles: [fast, verifier]")
    new = parse_config(changed, "new")
    assert config_diff(old, old) == ()
    assert config_diff(old, new) == (
        Change("models.mini.roles", ["fast"], ["fast", "verifier"], ("models", "mini", "roles")),
        Change("ingress.port", 8000, 8001, ("ingress", "port")),
    )


@pytest.mark.parametrize("name", ["local", "gpu"])
def test_a_config_survives_its_own_dump(name: str) -> None:
    config = parse_config(read(name), name)
    assert parse_config(config.model_dump_json(exclude_unset=True), name) == config
