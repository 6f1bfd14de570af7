"""Which state directory is meant, and how hints name it."""

from pathlib import Path

import pytest

from cluster.config.load import parse_config
from deployments.cli.api import Api, ApiUnreachableError
from deployments.cli.place import find_place
from tests.unit.cli.conftest import Invoke

ROOT = Path(__file__).parents[3]


def test_a_hint_names_the_directory_where_a_plain_command_would_miss_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse_config((ROOT / "infra" / "clusters" / "local.yaml").read_text(), "local.yaml")
    elsewhere = config.model_copy(update={"ray": config.ray.model_copy(update={"state_dir": str(tmp_path)})})
    assert "--state-dir" not in find_place(None, config).command("down")
    assert find_place(None, elsewhere).command("down").endswith(f" down --state-dir {tmp_path}")
    assert find_place(tmp_path, config).command("down").endswith(f" down --state-dir {tmp_path}")
    plain = find_place(None).state_dir
    assert "--state-dir" not in find_place(plain).command("down")
    # The variable wins over the config, and every command finds it.
    monkeypatch.setenv("POINTSMAN_STATE_DIR", str(tmp_path / "variable"))
    assert find_place(None, elsewhere).state_dir == tmp_path / "variable"
    assert "--state-dir" not in find_place(None, elsewhere).command("down")


def test_hints_about_a_cluster_that_does_not_answer_name_its_directory(tmp_path: Path, free_port: int) -> None:
    api = Api(f"http://127.0.0.1:{free_port}", "pm-1", find_place(tmp_path))
    with pytest.raises(ApiUnreachableError) as raised:
        api.text("/readyz")
    assert f"status --state-dir {tmp_path}`" in (raised.value.remedy or "")
    assert f"keys add NAME --state-dir {tmp_path}`" in (api.refusal(401, b"{}").remedy or "")


def test_the_help_names_the_config_where_one_is_read(invoke: Invoke) -> None:
    for command in (["up"], ["keys", "list"]):
        assert "then ray.state_dir of --config" in " ".join(invoke(*command, "--help").stdout.replace("│", " ").split())
    for command in (["down"], ["status"], ["chat"], ["trace"], ["models"]):
        words = " ".join(invoke(*command, "--help").stdout.replace("│", " ").split())
        assert "config sets ray.state_dir has to be named" in words
    assert "ray.state_dir" not in invoke("serve", "--help").stdout


def test_hints_of_commands_keep_the_directory(invoke: Invoke, tmp_path: Path) -> None:
    where = ("--state-dir", str(tmp_path))
    for command in ("revoke", "usage"):
        done = invoke("keys", command, "nothing1", *where)
        assert done.exit_code == 2
        assert f"keys list --state-dir {tmp_path}" in "".join(done.stderr.split("\n"))
