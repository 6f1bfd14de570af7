"""Tokens per second of model folders under the bare vLLM server, measured in alternating rounds."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from deployments.models.errors import ModelError
from deployments.processor import working_dtype

_START_TIMEOUT_S = 240.0
_ANSWER_TOKENS = 64


@dataclass(frozen=True)
class Speed:
    """What one model reached."""

    streams: int
    tokens_per_s: float
    """Median over the rounds."""
    ratio: float
    """Median over the rounds of this model's speed through the first model's in the same round."""


class EngineSpeedError(ModelError):
    """The server did not start or did not answer."""


def measure(folders: Sequence[Path], streams: Sequence[int], rounds: int, core: int) -> Mapping[Path, list[Speed]]:
    """Serve every folder, on one thread bound to `core`, and let them answer in turns, `rounds` times.

    Raises EngineSpeedError.
    """
    with ExitStack() as stack:
        urls = {folder: stack.enter_context(_server(folder, core)) for folder in folders}
        for url in urls.values():
            _round(url, 1, 0)
        found: dict[Path, list[Speed]] = {folder: [] for folder in folders}
        for count in streams:
            speeds: dict[Path, list[float]] = {folder: [] for folder in folders}
            for number in range(rounds):
                # Every other round goes backwards, so that a machine that slows down hits all alike.
                for folder in folders if number % 2 == 0 else reversed(folders):
                    speeds[folder].append(_round(urls[folder], count, number))
            for folder in folders:
                ratios = [own / first for own, first in zip(speeds[folder], speeds[folders[0]], strict=True)]
                found[folder].append(Speed(count, statistics.median(speeds[folder]), statistics.median(ratios)))
    return found


def _round(url: str, streams: int, number: int) -> float:
    def ask(stream: int) -> int:
        body = {
            "model": "measured",
            "prompt": f"{number}-{stream}. Tell a long story about a fox, please. It goes like this:",
            "max_tokens": _ANSWER_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
        }
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=300)
        answer.raise_for_status()
        return int(answer.json()["usage"]["completion_tokens"])

    with ThreadPoolExecutor(streams) as pool:
        start = time.perf_counter()
        tokens = sum(pool.map(ask, range(streams)))
        return tokens / (time.perf_counter() - start)


@contextmanager
def _server(folder: Path, core: int) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", "measured", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    command += [
        "--dtype",
        str(working_dtype()).removeprefix("torch."),
        "--max-model-len",
        "1024",
        "--max-num-seqs",
        "32",
    ]
    command += ["--kv-cache-memory-bytes", str(128 << 20), "--distributed-executor-backend", "uni"]
    settings = {
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": str(core),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }
    # A session of its own, so that the whole server can be ended and nothing of it stays.
    server = subprocess.Popen(
        command, env=os.environ | settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        _wait(server, f"http://127.0.0.1:{port}", folder)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, 9)
        server.wait()


def _wait(server: subprocess.Popen[bytes], url: str, folder: Path) -> None:
    remedy = "Start it by hand with `python -m vllm.entrypoints.openai.api_server --model FOLDER` to see why"
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise EngineSpeedError(f"the server of {folder} ended with status {server.returncode}", remedy)
        try:
            if httpx.get(f"{url}/health", timeout=5).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise EngineSpeedError(f"the server of {folder} was not ready after {_START_TIMEOUT_S:.0f} s", remedy)
