"""Which state directory is meant, and how hints name it."""

from pathlib import Path

import pytest

from cluster.config.load import parse_config
from deployments.cli.place import find_place

ROOT = Path(__file__).parents[3]


def test_a_hint_names_the_directory_where_a_plain_command_would_miss_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse_config((ROOT / "infra" / "clusters" / "local.yaml").read_text(), "local.yaml")
    elsewhere = config.model_copy(update={"ray": config.ray.model_copy(update={"state_dir": str(tmp_path)})})
    assert "--state-dir" not in find_place(None, config).command("down")
    assert find_place(None, elsewhere).command("down").endswith(f" down --state-dir {tmp_path}")
    assert find_place(tmp_path, config).command("down").endswith(f" down --state-dir {tmp_path}")
    # The variable wins over the config, and every command finds it.
    monkeypatch.setenv("POINTSMAN_STATE_DIR", str(tmp_path / "variable"))
    assert find_place(None, elsewhere).state_dir == tmp_path / "variable"
    assert "--state-dir" not in find_place(None, elsewhere).command("down")
