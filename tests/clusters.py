"""Starts real clusters for tests, through the command line that users type."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import yaml

ROOT = Path(__file__).parents[1]
UP_TIMEOUT_S = 400


@dataclass(frozen=True)
class RunningCluster:
    """A cluster that answers."""

    url: str
    """Base URL without `/v1`."""
    state_dir: Path
    config_path: Path
    env: dict[str, str] = field(repr=False)
    """Environment in which `pointsman` finds this cluster."""

    def client(self, timeout_s: float = 60.0, key: str | None = None) -> httpx.Client:
        """An HTTP client for the cluster."""
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, timeout=timeout_s, headers=headers, trust_env=False)

    def pointsman(self, *arguments: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run the command line against the cluster."""
        return run_pointsman(*arguments, env=self.env, timeout_s=timeout_s)

    def status(self) -> dict[str, object]:
        """What `pointsman status --json` says."""
        result: dict[str, object] = json.loads(self.pointsman("status", "--json").stdout)
        return result

    def wait_ready(self, timeout_s: float = 120.0) -> float:
        """Seconds until `/readyz` says ready. Raises `TimeoutError`."""
        started = time.monotonic()
        with self.client(timeout_s=5.0) as client:
            while time.monotonic() - started < timeout_s:
                try:
                    if client.get("/readyz").status_code == 200:
                        return time.monotonic() - started
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
        raise TimeoutError(f"the cluster was not ready within {timeout_s} s")


def run_pointsman(*arguments: str, env: dict[str, str], timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run the command line of this clone."""
    command = [sys.executable, "-m", "deployments.cli", *arguments]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)


def cluster_environment(state_dir: Path, port: int) -> dict[str, str]:
    """An environment in which `pointsman` means the cluster of `state_dir`, whatever the developer has set."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "POINTSMAN_"))}
    cache = os.environ.get("POINTSMAN_CACHE")
    if cache is not None:
        env["POINTSMAN_CACHE"] = cache
    return env | {
        "POINTSMAN_STATE_DIR": str(state_dir),
        "POINTSMAN_URL": f"http://127.0.0.1:{port}",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "NO_COLOR": "1",
        "COLUMNS": "120",
    }


def start_cluster(config: dict[str, object], state_dir: Path, port: int) -> RunningCluster:
    """Write `config` with `port` in it and bring the cluster up. Fails with all that the command printed."""
    ingress = config.setdefault("ingress", {})
    if not isinstance(ingress, dict):
        raise TypeError("ingress must be a mapping")
    ingress["port"] = port
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = state_dir / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    env = cluster_environment(state_dir, port)
    try:
        result = run_pointsman("up", "--config", str(path), env=env, timeout_s=UP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        stop_cluster(env)
        raise
    if result.returncode != 0:
        stop_cluster(env)
        raise RuntimeError(f"`pointsman up` exited with {result.returncode}:\n{result.stdout}\n{result.stderr}")
    return RunningCluster(f"http://127.0.0.1:{port}", state_dir, path, env)


def stop_cluster(env: dict[str, str]) -> None:
    """Bring the cluster of `env` down."""
    run_pointsman("down", env=env, timeout_s=120.0)


def local_config() -> dict[str, object]:
    """The embedded default, as a mapping that a test may change."""
    config: dict[str, object] = yaml.safe_load((ROOT / "infra" / "clusters" / "local.yaml").read_text())
    return config


def simulated_config(*names: str) -> dict[str, object]:
    """A portfolio of simulated engines: quick to start, for tests of everything around an engine."""
    models = {
        name: {
            "kind": "dense",
            "roles": ["strong", "fast"] if position == 0 else [f"role_{name}"],
            "source": "embedded:dense",
            "engine": {"type": "simulated", "max_model_len": 2048, "max_num_seqs": 32},
            "replicas": {"cpus": 0.1},
        }
        for position, name in enumerate(names)
    }
    return {
        "name": "simulated",
        "models": models,
        "routing": {"code_role": "strong"},
        "ray": {"num_cpus": 4},
    }
