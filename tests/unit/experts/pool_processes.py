"""Small random mixtures of experts, and pools of them in threads or processes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from cluster.experts.pools import Holding, Pool, PoolMap, Replica, holding_to_json
from deployments.experts.kernels import TorchKernel
from deployments.experts.pool import ExpertPool
from deployments.experts.pool_server import PoolServer
from deployments.experts.trunk_files import TrunkFiles
from deployments.experts.weights import Checkpoint
from deployments.experts.wire import address_of, listen

LAYERS, EXPERTS, HIDDEN, INTERMEDIATE, TOP_K = 3, 8, 64, 32, 2
SECRET = b"a secret of the tests"


def write_experts(folder: Path, seed: int = 0, shards: int = 1) -> dict[str, torch.Tensor]:
    """A checkpoint that has experts and nothing else, every one of them random and its own."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight": 0.2 * torch.randn(*shape, generator=generator)
        for layer in range(LAYERS)
        for expert in range(EXPERTS)
        for part, shape in (
            ("gate_proj", (INTERMEDIATE, HIDDEN)),
            ("up_proj", (INTERMEDIATE, HIDDEN)),
            ("down_proj", (HIDDEN, INTERMEDIATE)),
        )
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return tensors
    names, weight_map = sorted(tensors), {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[number::shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tensors


def expected(
    tensors: dict[str, torch.Tensor], layer: int, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """What the mixture says, written down plainly."""
    out = torch.zeros_like(x)
    for row in range(len(x)):
        for weight, expert in zip(weights[row], ids[row].tolist(), strict=True):
            gate, up, down = (
                tensors[f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight"]
                for part in ("gate_proj", "up_proj", "down_proj")
            )
            out[row] += weight * (down @ (torch.nn.functional.silu(gate @ x[row]) * (up @ x[row])))
    return out


def pool_of(folder: Path, holds: Holding) -> ExpertPool:
    return ExpertPool(Checkpoint(folder), holds, "float32", lambda dtype, _hidden: TorchKernel(dtype))


@contextlib.contextmanager
def server(folder: Path, holds: Holding, *addresses: str, **settings: Any) -> Iterator[tuple[PoolServer, list[str]]]:
    """A pool on a thread of this process, and its addresses. `settings` go to `PoolServer`."""
    listening = [listen(address) for address in addresses]
    reached = [address_of(one) for one in listening]
    settings = {"name": "a pool", "fingerprint": Checkpoint(folder).fingerprint(), "secret": SECRET, **settings}
    serves = PoolServer(pool_of(folder, holds), listening, **settings)
    thread = threading.Thread(target=serves.run)
    thread.start()
    try:
        yield serves, reached
    finally:
        serves.stop()
        thread.join(10)


@contextlib.contextmanager
def serving(folder: Path, holds: Holding, address: str, secret: bytes = SECRET) -> Iterator[str]:
    """A pool on a thread of this process; gives its address."""
    with server(folder, holds, address, secret=secret) as (_, reached):
        yield reached[0]


@dataclass
class PoolProcess:
    """A pool process that may be killed."""

    process: subprocess.Popen[str]
    said: dict[str, Any]

    @property
    def address(self) -> str:
        return str(self.said["address"])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


@contextlib.contextmanager
def pool_process(
    checkpoint: Path, holds: Holding, folder: Path, name: str, dtype: str = "float32"
) -> Iterator[PoolProcess]:
    """Starts `python -m deployments.experts` and waits until it serves."""
    (folder / f"{name}.json").write_text(json.dumps(holding_to_json(holds)))
    (folder / "secret").write_bytes(SECRET)
    command = [sys.executable, "-m", "deployments.experts", "--name", name, "--checkpoint", str(checkpoint)]
    command += ["--holds", str(folder / f"{name}.json"), "--listen", f"unix:{folder / name}.sock", "--dtype", dtype]
    command += ["--secret-file", str(folder / "secret")]
    environment = {**os.environ, "POINTSMAN_OWNER_PID": str(os.getpid())}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    try:
        yield PoolProcess(process, json.loads(process.stdout.readline() or "{}"))
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


def map_of(*pools: tuple[Holding, list[str]], version: int = 1) -> PoolMap:
    """Pools by what they hold and where their replicas are."""
    return PoolMap(
        version,
        tuple(
            Pool(f"pool{number}", tuple(Replica(f"r{number}-{i}", a) for i, a in enumerate(addresses)), holds)
            for number, (holds, addresses) in enumerate(pools)
        ),
    )


def trunk_files(folder: Path, pool_map: PoolMap, secret: bytes = SECRET, **limits: float) -> TrunkFiles:
    """Files of a trunk in a folder, written."""
    (folder / "trunk-secret").write_bytes(secret)
    limits = {"answer_s": 5.0, "outage_s": 0.3, "wake_s": 0.3, **limits}
    files = TrunkFiles(folder / "map.json", folder / "trunk-secret", **limits)
    replace_map(files, pool_map)
    return files


def replace_map(files: TrunkFiles, pool_map: PoolMap | str) -> None:
    """Put another map, whole, where the trunk looks for it."""
    new = files.map.with_suffix(".new")
    new.write_text(pool_map if isinstance(pool_map, str) else pool_map.to_json())
    new.replace(files.map)
