"""The pressure scenario from its command to its picture, on simulated engines: what it finds there is not a measurement."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.clusters import ROOT, cluster_environment, simulated_config
from tests.integration.cluster_processes import unused_port

pytestmark = pytest.mark.timeout(240)


@pytest.mark.slow
def test_one_command_runs_all_arms_and_leaves_a_report_and_a_picture(tmp_path: Path) -> None:
    config, port = simulated_config("dense", "mini"), unused_port()
    models = config["models"]
    assert isinstance(models, dict)
    for model in models.values():
        model["engine"] |= {"max_model_len": 1024, "simulated": {"kv_blocks": 12}}
        model["replicas"] |= {"max_ongoing_requests": 512}
    quality = {"fp8": {"agreement": 1.0, "kl": 0.0, "consistency": 1.0}}
    models["dense"]["precision"] = {"twin": "mini", "kv_quality": quality}
    config |= {
        "admission": {"kv_overcommit": 100},
        "precision": {"dwell_s": 1, "window_s": 1, "max_completion_tokens": 64},
        "ingress": {"port": port},
    }
    path, state, out = tmp_path / "config.yaml", tmp_path / "state", tmp_path / "out"
    path.write_text(yaml.safe_dump(config))
    options = ["--config", str(path), "--state-dir", str(state), "--out", str(out), "--quick"]
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.pressure", *options],
        cwd=ROOT,
        env=cluster_environment(state, port),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (out / "pressure.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads((out / "pressure.json").read_text())
    runs = {run["arm"]: run for run in told["runs"]}
    assert list(runs) == ["ladder off", "KV only", "full ladder"]
    offered = {run["figures"]["offered"] for run in runs.values()}
    assert len(offered) == 1 and offered.pop() > 5
    assert [run["figures"]["memory_errors"] for run in runs.values()] == [0, 0, 0]
    assert runs["ladder off"]["figures"]["levels"]["dense"] == 0 and runs["ladder off"]["timeline"] == []
    assert runs["KV only"]["figures"]["levels"]["dense"] == 1 and runs["KV only"]["figures"]["switches"] >= 1
    assert runs["full ladder"]["figures"]["levels"]["dense"] >= 2
    for name in ("KV only", "full ladder"):
        changes = [row for row in runs[name]["timeline"] if row["model"] == "dense"]
        assert (changes[0]["level_before"], changes[-1]["level"]) == (0, 0)
        # It came back.
        assert runs[name]["samples"][-1]["models"]["dense"]["level"] == 0
    assert "changes of precision" in done.stderr and "over the ladder switched off" in done.stderr
