from __future__ import annotations

import json

import yaml

from cluster.config.load import parse_config
from deployments.cli.config_files import default_config

BAD = """models:
  dense:
    kind: densee
    rolse: [strong]
ingress: {port: 0}
"""


def test_a_good_config(invoke):
    done = invoke("config", "check", str(default_config()))
    assert done.exit_code == 0, done.output
    assert "no mistakes" in done.stdout
    assert "127.0.0.1:8000" in done.stdout


def test_every_mistake_has_its_path_line_and_remedy(invoke, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(BAD)
    done = invoke("config", "check", str(path))
    assert done.exit_code == 2
    for words in ("line 3  models.dense.kind", "did you mean roles?", "line 5  ingress.port"):
        assert words in done.stdout
    report = json.loads(invoke("config", "check", "--json", str(path)).stdout)
    assert report["valid"] is False
    assert {"models.dense.kind", "models.dense.rolse", "ingress.port"} <= {each["path"] for each in report["mistakes"]}


def test_files_that_cannot_be_read(invoke, tmp_path):
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing.yaml", tmp_path, binary):
        done = invoke("config", "check", str(path))
        assert done.exit_code == 2
        assert str(path) in done.stderr


def test_show_prints_what_is_in_force_as_a_config(invoke):
    done = invoke("config", "show", str(default_config()))
    assert done.exit_code == 0, done.output
    shown = parse_config(done.stdout, "shown")
    assert shown == parse_config(default_config().read_text(), "file")
    assert yaml.safe_load(done.stdout)["ingress"]["limits"]["body_bytes"] == 1_048_576
    assert json.loads(invoke("config", "show", "--json", str(default_config())).stdout)["ingress"]["port"] == 8000


def test_schema(invoke):
    assert json.loads(invoke("config", "schema").stdout)["title"] == "ClusterConfig"
