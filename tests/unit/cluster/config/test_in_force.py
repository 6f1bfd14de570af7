import json
from pathlib import Path

import pytest

from cluster.config.cluster import ClusterConfig
from cluster.config.in_force import in_force
from cluster.config.load import parse_config

CLUSTERS = Path(__file__).parents[4] / "infra" / "clusters"


@pytest.mark.parametrize("path", sorted(CLUSTERS.glob("*.yaml")), ids=lambda path: path.name)
def test_what_is_written_is_the_same_config_again(path: Path) -> None:
    config = parse_config(path.read_text(), path.name)
    assert ClusterConfig.model_validate(in_force(config)) == config


def test_precision_is_written_for_models_that_do_not_have_it_too() -> None:
    text = (CLUSTERS / "gpu.yaml").read_text()
    text = text.replace("  qwen3-0.6b:\n", "  qwen3-0.6b:\n    precision: {pinned: 1}\n")
    config = parse_config(text + "\nprecision: {levels: [fp8_kv, shed], best_effort: []}\n", "gpu.yaml")
    document = in_force(config)
    assert document["models"]["minilm"]["precision"] == {"twin": None, "kv_quality": {}, "pinned": None}
    assert document["models"]["qwen3-0.6b"]["precision"]["pinned"] == 1
    assert parse_config(json.dumps(document), "again") == config
