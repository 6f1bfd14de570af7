"""The bare vLLM server: what a cluster is measured against. It is started as a process and never imported."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from cluster.config.model import ModelConfig
from deployments.engines.vllm_args import has_gpu, served_dtype, step_tokens
from deployments.processes import kill_all
from loadtests.machine import tree


class ServerError(RuntimeError):
    """The server did not start. The message names its log."""


@dataclass(frozen=True, slots=True)
class Binding:
    """Which cores and processes a server uses."""

    layout: Literal["in-core", "processes"] = "in-core"
    """`in-core`: the worker runs inside the engine core. `processes`: vLLM's default, a process for each."""
    cores: str | None = None
    """Core numbers that the engine's threads are bound to, such as `0` or `0-1`; None: not bound."""
    threads: int = 1
    """Threads that the engine computes with."""
    nice: int = 0
    """Niceness of the server's processes."""

    def __str__(self) -> str:
        cores = f"cores {self.cores}" if self.cores is not None else "unbound"
        nice = f", nice {self.nice}" if self.nice else ""
        return f"{self.layout}, {cores}, {self.threads} thread{'s' if self.threads != 1 else ''}{nice}"


def parse_binding(text: str) -> Binding:
    """A binding written as `LAYOUT:CORES:THREADS`, such as `in-core:0:1` or `processes:nobind:2`. Raises `ValueError`."""
    layout, _, rest = text.partition(":")
    cores, _, threads = rest.partition(":")
    if layout not in ("in-core", "processes") or not cores or not threads.isdigit() or int(threads) < 1:
        raise ValueError(
            f"{text!r} is no binding; write LAYOUT:CORES:THREADS, such as in-core:0:1 or processes:nobind:2"
        )
    return Binding(
        "in-core" if layout == "in-core" else "processes", None if cores == "nobind" else cores, int(threads)
    )


def server_arguments(name: str, model: ModelConfig, path: Path, port: int, binding: Binding) -> list[str]:
    """Command line of the bare server with the engine arguments of a model of the cluster's config.

    The counterpart of what the cluster hands to vLLM. `kv_cache_bytes` goes in as bytes, so both pools are exactly
    equal. The access log is off, as it costs the bare server some speed.
    """
    engine = model.engine
    length = engine.max_model_len
    if engine.kv_window_tokens is not None:
        length = min(engine.kv_window_tokens, length or engine.kv_window_tokens)
    valued: dict[str, object | None] = {
        "--model": path,
        "--served-model-name": name,
        "--host": "127.0.0.1",
        "--port": port,
        "--dtype": served_dtype(engine.dtype, has_gpu()),
        "--max-model-len": length,
        "--max-num-seqs": engine.max_num_seqs,
        "--max-num-batched-tokens": step_tokens(model, has_gpu()),
        "--kv-cache-memory-bytes": engine.kv_cache_bytes,
        "--kv-cache-dtype": engine.kv_cache_dtype,
        "--quantization": engine.quantization,
        "--tensor-parallel-size": engine.tensor_parallel_size,
        "--chat-template": engine.chat_template,
        "--seed": engine.seed,
        "--distributed-executor-backend": "uni" if binding.layout == "in-core" else None,
    }
    arguments = [text for flag, value in valued.items() if value is not None for text in (flag, str(value))]
    arguments.append("--enable-prefix-caching" if engine.prefix_caching else "--no-enable-prefix-caching")
    if engine.enforce_eager:
        arguments.append("--enforce-eager")
    if engine.expert_parallel:
        arguments.append("--enable-expert-parallel")
    arguments.append("--disable-uvicorn-access-log")
    return arguments


def server_environment(binding: Binding, inherited: dict[str, str]) -> dict[str, str]:
    """The bare server's environment: what it would have on its own, plus its binding."""
    # The first would override the exact size of the KV pool; the others belong to a cluster's own processes.
    left_out = ("VLLM_", "POINTSMAN_", "OMP_", "OTEL_", "RAY_", "GOMP_", "KMP_")
    environment = {name: value for name, value in inherited.items() if not name.startswith(left_out)}
    environment |= {
        # The bare server is vLLM as it comes: without this it would load Pointsman's plugin where that is installed.
        "VLLM_PLUGINS": "",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(binding.threads),
        "VLLM_CPU_OMP_THREADS_BIND": binding.cores if binding.cores is not None else "nobind",
    }
    if binding.layout == "in-core":
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return environment


class BareServer:
    """One bare vLLM server on a free loopback port. Use it as a context manager: leaving stops every process of it."""

    def __init__(self, name: str, model: ModelConfig, path: Path, binding: Binding, log: Path) -> None:
        self._name = name
        self._model = model
        self._path = path
        self._binding = binding
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """Base URL of the server."""
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, timeout_s: float = 300.0) -> None:
        """Start and wait until it answers. Raises `ServerError`."""
        self._port = _free_port()
        arguments = server_arguments(self._name, self._model, self._path, self._port, self._binding)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments]
            self._process = subprocess.Popen(
                # However this process ends, the guard then ends the server and its engine.
                [sys.executable, "-m", "loadtests.guard", str(os.getpid()), *server],
                env=server_environment(self._binding, dict(os.environ)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C at the terminal is for this process, which then stops the server in order.
                start_new_session=True,
            )
        os.setpriority(os.PRIO_PROCESS, self._process.pid, self._binding.nice)
        deadline = time.monotonic() + timeout_s
        while not self._answers():
            if self._process.poll() is not None:
                raise ServerError(f"the bare vLLM server ended at start; the reason stands in {self._log}")
            if time.monotonic() > deadline:
                raise ServerError(f"the bare vLLM server did not answer in {timeout_s:.0f} s; see {self._log}")
            time.sleep(0.2)

    def pids(self) -> set[int]:
        """All its processes."""
        return tree(self._process.pid) if self._process is not None else set()

    def stop(self) -> None:
        """End all its processes. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout=30.0)
        except subprocess.TimeoutExpired:
            kill_all(tree(process.pid), grace_s=0.0)
            process.wait()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2.0) as response:  # noqa: S310 - http, ours
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
