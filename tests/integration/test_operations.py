"""Every step of docs/operations.md is taken, against a running cluster and a stand-in for Grafana."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import kubernetes_validate
import pytest
import yaml

from deployments.dashboards.catalog import DASHBOARDS
from tests.clusters import RunningCluster
from tests.integration.grafana_stand_in import TOKEN, GrafanaStandIn, grafana_stand_in
from tests.readme_blocks import Block, read_blocks
from tests.unit.render.conftest import SERVICE_CRD, strict_service_schema
from tests.unit.render.test_kuberay import KUBERNETES

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "operations.md"
BLOCKS = read_blocks(GUIDE)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has in the clone, where the blocks leave their files one after the other."""
    folder = tmp_path_factory.mktemp("operations")
    shutil.copytree(ROOT / "infra", folder / "infra")
    return folder


@pytest.fixture(scope="module")
def stand_in() -> Iterator[GrafanaStandIn]:
    with grafana_stand_in() as started:
        yield started


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.reason is None], ids=lambda block: f"line{block.line}")
def test_a_step(block: Block, place: Path, stand_in: GrafanaStandIn, running_cluster: RunningCluster) -> None:
    environment = dict(running_cluster.env) | {"GRAFANA_URL": stand_in.url, "GRAFANA_TOKEN": TOKEN}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    script = "\n".join(block.commands)
    if "keys add" in script:
        # The cluster is shared: its keys are left as they are.
        environment["POINTSMAN_STATE_DIR"] = str(place / "state")
    if "config apply" in script:
        # The one that runs has a port of its own.
        shutil.copy(running_cluster.config_path, place / "infra" / "clusters" / "local.yaml")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=place,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, f"line {block.line}:\n{script}\n{done.stdout}\n{done.stderr}"
    if "dashboards push" in script:
        assert len(stand_in.dashboards) == len(DASHBOARDS)
        assert "unchanged" in done.stdout
    if "render" in script:
        validate(list(yaml.safe_load_all((place / "out" / "kubernetes" / "kuberay.yaml").read_text(encoding="utf-8"))))


def validate(objects: list[dict[str, Any]]) -> None:
    """By the schemas of Kubernetes, and by KubeRay's own where it is at hand."""
    (service,) = [one for one in objects if one["kind"] == "RayService"]
    for one in objects:
        if one is not service:
            kubernetes_validate.validate(one, KUBERNETES, strict=True)
    if SERVICE_CRD.is_file():
        found = jsonschema_rs.validator_for(strict_service_schema()).iter_errors(service)
        assert [str(error) for error in found] == []


def test_the_guide_knows_every_alert_and_every_dashboard() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    rules = yaml.safe_load((ROOT / "infra" / "prometheus" / "rules" / "alerts.yaml").read_text(encoding="utf-8"))
    alerts = {rule["alert"]: rule for group in rules["groups"] for rule in group["rules"]}
    headings = re.findall(r"^### (Pointsman\w+)$", text, re.MULTILINE)
    assert sorted(alerts) == sorted(headings)
    # Where an alert's own link leads.
    for name, rule in alerts.items():
        assert rule["annotations"]["runbook"].endswith(f"docs/operations.md#{name.lower()}")
    assert all(f"| {one.title} |" in text for one in DASHBOARDS)
