from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.bare_server import Binding, parse_binding
from loadtests.configured import vllm_model

LOCAL = Path(__file__).parents[3] / "infra" / "clusters" / "local.yaml"


def test_the_default_config_has_a_dense_model_to_compare() -> None:
    config, model = vllm_model(LOCAL, "dense")
    assert "dense" in config.models
    assert model.source == "embedded:dense"


@pytest.mark.parametrize(("name", "reason"), [("nothing", "no model"), ("encoder", "not run on vLLM")])
def test_models_without_a_bare_server_are_refused(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        vllm_model(LOCAL, name)


def test_a_config_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        vllm_model(tmp_path / "none.yaml", "dense")


def test_bindings_are_read() -> None:
    assert parse_binding("in-core:0:1") == Binding(cores="0")
    assert parse_binding("processes:nobind:2") == Binding("processes", None, 2)


@pytest.mark.parametrize("text", ["in-core", "elsewhere:0:1", "in-core:0:", "in-core:0:0", "in-core::1"])
def test_what_is_no_binding_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="LAYOUT:CORES:THREADS"):
        parse_binding(text)
