"""The command line without a cluster behind it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deployments.cli.app import app
from deployments.head.state import ClusterState, ModelState, Phase, read_state, write_state
from deployments.processes import processes_of
from tests.unit.cli.fake_api import fake_api

ROOT = Path(__file__).resolve().parents[3]
FAKE_HEAD = "tests.unit.cli.fake_head"

SIMULATED = """
models:
  large:
    kind: dense
    roles: [strong]
    source: embedded:dense
    engine: {{type: simulated}}
  small:
    kind: mini
    roles: [fast, fluency]
    source: embedded:mini
    engine: {{type: simulated}}
ingress: {{port: {port}}}
"""

Invoke = Callable[..., Result]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch, tmp_path) -> None:
    for name in ("POINTSMAN_STATE_DIR", "POINTSMAN_API_KEY", "POINTSMAN_URL", "POINTSMAN_DEBUG", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def invoke(state_dir) -> Invoke:
    """Runs a command of this test's state directory."""

    def run(*arguments: str, stdin: str | None = None) -> Result:
        os.environ["POINTSMAN_STATE_DIR"] = str(state_dir)
        try:
            return CliRunner().invoke(app, list(arguments), input=stdin)
        finally:
            del os.environ["POINTSMAN_STATE_DIR"]

    return run


@pytest.fixture
def api():
    with fake_api() as running:
        yield running


@pytest.fixture
def running(state_dir, api, monkeypatch) -> ClusterState:
    """A cluster whose head process is this test and whose ingress is `api`."""
    monkeypatch.setattr("deployments.cli.place.HEAD_MODULE", "")
    host, _, port = api.url.removeprefix("http://").partition(":")
    state = ClusterState(
        cluster_id="none-of-this-name",
        pid=os.getpid(),
        config_path="cluster.yaml",
        host=host,
        port=int(port),
        phase=Phase.READY,
        started_at=time.time() - 90,
        models={"large": ModelState(Phase.READY, "", 12.5), "small": ModelState(Phase.READY, "", 20.0)},
    )
    write_state(state_dir, state)
    return state


@pytest.fixture
def config_file(tmp_path, free_port) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(SIMULATED.format(port=free_port), encoding="utf-8")
    return path


@pytest.fixture
def fake_head(monkeypatch, free_port, state_dir):
    """Makes `up` start the stand-in; called with what it shall do."""
    monkeypatch.setattr("deployments.cli.place.HEAD_MODULE", FAKE_HEAD)
    monkeypatch.setattr("deployments.cli.head_process.HEAD_MODULE", FAKE_HEAD)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("FAKE_HEAD_PORT", str(free_port))
    yield lambda mode: monkeypatch.setenv("FAKE_HEAD", mode)
    state = read_state(state_dir)
    if state is not None:
        for pid in (state.pid, *processes_of(state.cluster_id)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
