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
