"""Which tool choices a model can be held to. That the grammar holds is seen in tests/integration/test_engine_vllm.py."""

from __future__ import annotations

import pytest

from cluster.api.errors import ApiError
from cluster.config.load import parse_config
from deployments.cli.config_files import default_config
from deployments.engines.vllm_tools import GUIDED, guarantees_forced_calls, is_forced, refuse_auto, register_guided

# Importing vLLM and its dependencies warns about many things that are not ours.
pytestmark = pytest.mark.filterwarnings("ignore")

TOOLS = [{"type": "function", "function": {"name": "f"}}]
NAMED = {"type": "function", "function": {"name": "f"}}


def test_a_parser_that_only_reads_is_no_guarantee() -> None:
    register_guided()
    register_guided()
    assert guarantees_forced_calls("hermes")
    assert guarantees_forced_calls(GUIDED)
    # Its forced calls are read like chosen ones, and no grammar makes the model write any.
    assert not guarantees_forced_calls("gemma4")
    assert not guarantees_forced_calls(None)
    with pytest.raises(KeyError):
        guarantees_forced_calls("surely-not-a-parser")


@pytest.mark.parametrize("name", ["local.yaml", "gpu.yaml"])
def test_the_parsers_of_the_shipped_configs_are_known_to_vllm(name: str) -> None:
    path = default_config().with_name(name)
    models = parse_config(path.read_text(), name).models.values()
    for parser in [model.engine.tool_parser for model in models if model.engine.tool_parser is not None]:
        guarantees_forced_calls(parser)


@pytest.mark.parametrize(
    ("choice", "forced"), [("required", True), (NAMED, True), ("auto", False), ("none", False), (None, False)]
)
def test_forced_and_free_choices(choice: object, forced: bool) -> None:
    assert is_forced({"tools": TOOLS, "tool_choice": choice}) is forced
    assert not is_forced({"tool_choice": choice})
    if forced or choice == "none":
        refuse_auto({"tools": TOOLS, "tool_choice": choice})
    else:
        with pytest.raises(ApiError, match="no parser for tool calls") as raised:
            refuse_auto({"tools": TOOLS, "tool_choice": choice})
        assert (raised.value.status, raised.value.param) == (400, "tool_choice")


def test_no_tools_no_refusal() -> None:
    refuse_auto({"messages": []})
    with pytest.raises(ApiError):
        refuse_auto({"tools": TOOLS})
