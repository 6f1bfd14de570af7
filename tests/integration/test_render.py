"""The rendered Serve config, run by Ray: deployed by Ray's own client, asked, changed under load, taken away."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.clusters import ROOT, RunningCluster, cluster_environment, run_pointsman, simulated_config
from tests.faults.load import SteadyLoad, chat
from tests.integration.cluster_processes import unused_port, wait_for

pytestmark = pytest.mark.timeout(240)

CHAT = "/v1/chat/completions"


class Deployer:
    """Ray with a rendered config on it."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self._folder = folder
        self.config = config
        self._rendered = 0
        port = config["ingress"]["port"]
        self._env = cluster_environment(folder / "state", port)
        self.path = folder / "config.yaml"
        self.path.write_text(yaml.safe_dump(config))
        self.cluster = RunningCluster(f"http://127.0.0.1:{port}", folder / "state", self.path, self._env)
        self._errors = (folder / "deployer.err").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/integration/serve_deployer.py"), str(self.path), str(folder / "state")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            # As in the pods: Ray's processes ask each other for a token.
            env=self._env
            | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)},
        )

    def deploy(self) -> None:
        """Render the config as it is now with the command, and have Ray run it."""
        self._rendered += 1
        folder = self._folder / f"rendered-{self._rendered}"
        self.path.write_text(yaml.safe_dump(self.config))
        done = run_pointsman("render", "--target", "serve", str(self.path), "--out", str(folder), env=self._env)
        assert done.returncode == 0, done.stderr
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{folder / 'serve.yaml'}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "deployed\n", (self._folder / "deployer.err").read_text()[-3000:]

    def close(self) -> int:
        """Take everything away; the exit status."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            return self._process.wait(60)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
            self._errors.close()


@pytest.fixture(scope="module")
def deployer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployer]:
    config = simulated_config("alpha", "beta")
    models: Any = config["models"]
    models["alpha"]["replicas"] |= {"drain_timeout_s": 10}
    models["beta"] |= {"kind": "sparse", "pools": {"count": 2, "min": 1, "max": 1, "cpus": 0.1, "uneven": None}}
    models["beta"]["engine"]["simulated"] = {"experts": {"layers": 2, "experts": 4, "top_k": 2}}
    config["contracts"] = {"strong": {"max_prompt_tokens": 512, "max_completion_tokens": 64}}
    config["ingress"] = {"port": unused_port(), "replicas": 2}
    running = Deployer(tmp_path_factory.mktemp("rendered"), config)
    try:
        running.deploy()
        running.cluster.wait_ready(90)
        yield running
    finally:
        status = running.close()
    assert status == 0


def test_ray_runs_what_was_rendered(deployer: Deployer) -> None:
    with deployer.cluster.client() as client:
        for model in ("alpha", "beta"):
            answer = client.post(CHAT, json=chat(model, 8))
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["completion_tokens"] == 8
        listed = client.get("/v1/models").json()["data"]
    assert [one["id"] for one in listed if one["id"] in ("alpha", "beta")] == ["alpha", "beta"]


def test_a_change_is_brought_in_by_ray_under_load(deployer: Deployer) -> None:
    deployer.config["contracts"]["strong"]["max_completion_tokens"] = 32
    with SteadyLoad(deployer.cluster, chat("alpha", 8), 5.0) as load:
        deployer.deploy()
        with deployer.cluster.client() as client:

            def refused() -> bool:
                answer = client.post(CHAT, json=chat("strong", 48))
                return answer.status_code == 400 and "32" in answer.text

            wait_for(refused, 60, every_s=0.2)
    assert load.failed == []
    assert len(load.outcomes) > 3
