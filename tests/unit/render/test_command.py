from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from deployments.cli.app import app
from tests.unit.render.conftest import ROOT

FIT = ROOT / "infra" / "clusters" / "kubernetes.yaml"
LOCAL = ROOT / "infra" / "clusters" / "local.yaml"


def invoke(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, [str(argument) for argument in arguments])


def test_it_prints_or_writes(tmp_path: Path) -> None:
    for target in ("serve", "kuberay"):
        printed = invoke("render", "--target", target, FIT)
        assert printed.exit_code == 0, printed.output
        written = invoke("render", "--target", target, FIT, "--out", tmp_path / "new")
        assert written.exit_code == 0, written.output
        path = tmp_path / "new" / f"{target}.yaml"
        assert str(path) in written.output.replace("\n", "")
        assert path.read_text() == printed.stdout


def test_it_writes_a_chart(tmp_path: Path) -> None:
    done = invoke("render", "--target", "helm", FIT, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert yaml.safe_load((tmp_path / "Chart.yaml").read_text())["name"] == "pointsman"


def test_a_chart_needs_a_folder() -> None:
    done = invoke("render", "--target", "helm", FIT)
    assert done.exit_code == 2 and "--out DIR" in done.output


@pytest.mark.parametrize("target", ["kuberay", "helm"])
def test_what_is_unsafe_is_not_rendered(target: str, tmp_path: Path) -> None:
    done = invoke("render", "--target", target, LOCAL, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "ingress.host" in done.output and "set it to 0.0.0.0" in done.output
    assert not (tmp_path / "out").exists()


def test_a_serve_config_is_rendered_of_what_runs_on_a_laptop() -> None:
    assert invoke("render", "--target", "serve", LOCAL).exit_code == 0


def test_the_check_for_kubernetes() -> None:
    assert invoke("config", "check", LOCAL).exit_code == 0
    assert "no mistakes" in invoke("config", "check", "--kubernetes", FIT).stdout
    refused = invoke("config", "check", "--kubernetes", LOCAL)
    assert "ray.num_cpus" in refused.stdout and "leave it out" in refused.stdout


def test_the_commands_of_the_guide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "deploy.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) == 3
    for line in lines:
        program, *arguments = shlex.split(line.replace(" out/", f" {tmp_path}/"))
        done = invoke(*arguments)
        assert program == "pointsman" and done.exit_code == 0, done.output
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.yaml")}
    assert {"local/serve.yaml", "kubernetes/kuberay.yaml", "chart/Chart.yaml", "chart/values.yaml"} <= made
