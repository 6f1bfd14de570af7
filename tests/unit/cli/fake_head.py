"""Stands in for the head process: writes the states that a real one writes, answers /readyz, starts no Ray.

What it does is told by FAKE_HEAD: `ready`, `degraded`, `all-failed`, `dies`, `slow` (never ready) or `stubborn` (ready,
and deaf to SIGTERM). It starts a child with the cluster's marker, which it leaves behind if killed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

from deployments.head.state import ClusterState, ModelState, Phase, remove_state, write_state
from deployments.processes import CLUSTER_VARIABLE

MODE = os.environ.get("FAKE_HEAD", "ready")
PORT = int(os.environ["FAKE_HEAD_PORT"])
CLUSTER = f"fake-{os.getpid()}"


class Ready(BaseHTTPRequestHandler):
    models: ClassVar[dict[str, dict[str, object]]] = {}

    def do_GET(self) -> None:
        body = json.dumps({"models": self.models}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    parser.add_argument("--state-dir", type=Path)
    parser.add_argument("--model-paths", type=json.loads)
    arguments = parser.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: None if MODE == "stubborn" else stop.set())

    def write(phase: Phase, models: dict[str, ModelState], message: str = "") -> None:
        state = ClusterState(
            CLUSTER, os.getpid(), arguments.config, "127.0.0.1", PORT, phase, time.time(), message, models=models
        )
        write_state(arguments.state_dir, state)

    names = list(arguments.model_paths)
    loading = {name: ModelState(Phase.STARTING) for name in names}
    write(Phase.STARTING, loading, "starting Ray")
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], env={**os.environ, CLUSTER_VARIABLE: CLUSTER}
    )
    if MODE == "dies":
        child.kill()
        sys.stdout.write("something that Ray printed\n")
        write(Phase.FAILED, loading, "RuntimeError: no room for Ray")
        return 1
    failed = ModelState(Phase.FAILED, "Traceback ...\nEngineStartError: no memory for the KV cache")
    models = {name: ModelState(Phase.READY, "", 0.1) for name in names}
    if MODE == "degraded":
        models[names[-1]] = failed
    elif MODE == "all-failed":
        models = dict.fromkeys(names, failed)
    Ready.models = {name: {"ready": model.phase is Phase.READY, "replicas": 1} for name, model in models.items()}
    server = ThreadingHTTPServer(("127.0.0.1", PORT), Ready)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    if MODE == "slow":
        write(Phase.STARTING, loading)
    else:
        phase = {"degraded": Phase.DEGRADED, "all-failed": Phase.FAILED}.get(MODE, Phase.READY)
        write(phase, models)
    stop.wait()
    child.kill()
    child.wait()
    remove_state(arguments.state_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
