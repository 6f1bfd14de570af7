"""A real Prometheus of a test's own, on a free port, and what it is asked."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.integration.cluster_processes import unused_port

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "infra" / "prometheus"
START_S = 30


@dataclass(frozen=True)
class Prometheus:
    """One that runs."""

    url: str

    def ask(self, path: str, **parameters: Any) -> Any:
        """The data of an answer of its API. Raises `ValueError` with what it says if it cannot answer."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30, trust_env=False).json()
        if answer["status"] != "success":
            raise ValueError(f"{answer['errorType']}: {answer['error']}")
        return answer["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series of an expression, now."""
        data = self.ask("query", query=expr)
        if data["resultType"] == "scalar":
            return [{"metric": {}, "value": data["result"]}]
        found: list[dict[str, Any]] = data["result"]
        return found

    def range(self, expr: str, seconds: float, step_s: float) -> list[dict[str, Any]]:
        """The series of an expression over the last `seconds`."""
        now = time.time()
        data = self.ask("query_range", query=expr, start=now - seconds, end=now, step=step_s)
        found: list[dict[str, Any]] = data["result"]
        return found

    def targets(self) -> list[dict[str, Any]]:
        """What it scrapes, and how that went."""
        found: list[dict[str, Any]] = self.ask("targets", state="active")["activeTargets"]
        return found


def shipped_config(folder: Path, target: str, key: str, scrape_s: int) -> Path:
    """The scrape config and rules as they are shipped, for another target, key and pace. Returns the config's path."""
    config: dict[str, Any] = yaml.safe_load((SHIPPED / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": f"{scrape_s}s", "evaluation_interval": f"{scrape_s}s"}
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [target]}]
    credentials = folder / job["authorization"]["credentials_file"]
    credentials.write_text(key)
    credentials.chmod(0o600)
    for name in config["rule_files"]:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        rules = yaml.safe_load((SHIPPED / name).read_text())
        for group in rules["groups"]:
            group.pop("interval", None)
        path.write_text(yaml.safe_dump(rules))
    path = folder / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@contextmanager
def running_prometheus(config: Path) -> Iterator[Prometheus]:
    """Runs one with `config` until the block ends. Raises `RuntimeError` with its log if it does not start."""
    port = unused_port()
    log = config.parent / "prometheus.log"
    command = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={config.parent / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
    ]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    server = Prometheus(f"http://127.0.0.1:{port}")
    try:
        _wait(server, process, log)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=5)


def _wait(server: Prometheus, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(f"{server.url}/-/ready", timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"Prometheus did not start:\n{log.read_text()}")
