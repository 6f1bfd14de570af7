"""Reads single experts out of a checkpoint in safetensors, in one file or many, and nothing else of it."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cluster.experts.pools import Holding

if TYPE_CHECKING:
    import torch

INDEX: Final = "model.safetensors.index.json"
MAX_HEADER_BYTES: Final = 100_000_000
"""As in the safetensors format."""

_EXPERT: Final = re.compile(
    r"(?:.+\.)?layers\.(\d+)\.(?:.+\.)?experts\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight"
)
_PARTS: Final = {"gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "down_proj": "down", "w2": "down"}


class CheckpointError(Exception):
    """The checkpoint is not one whose experts can be read one by one; the message says why."""


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """Sizes of every routed expert of a model."""

    hidden: int
    intermediate: int


class Checkpoint:
    """A model's folder. Opening it reads the headers of its files, no weights. Raises `CheckpointError`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tensors = {name: file for file in _files(folder) for name in _header(file)}
        self._experts: dict[tuple[int, int], dict[str, str]] = {}
        for name in self._tensors:
            found = _EXPERT.fullmatch(name)
            if found is not None:
                key = int(found[1]), int(found[2])
                self._experts.setdefault(key, {})[_PARTS[found[3]]] = name
        if not self._experts:
            raise CheckpointError(
                f"{folder} has no experts in tensors of their own (`...layers.N...experts.N.gate_proj.weight` and the "
                "like): checkpoints that stack all experts of a layer in one tensor, or that quantize them, are not read"
            )
        for (layer, expert), parts in self._experts.items():
            if len(parts) != 3:
                raise CheckpointError(f"{folder}: expert {expert} of layer {layer} has only {', '.join(sorted(parts))}")

    @property
    def layers(self) -> list[int]:
        """Layers with routed experts."""
        return sorted({layer for layer, _ in self._experts})

    @property
    def experts(self) -> int:
        """Routed experts of a layer."""
        return 1 + max(expert for _, expert in self._experts)

    @property
    def shape(self) -> ExpertShape:
        """Sizes of the first expert; `read` holds the others to them."""
        name = next(iter(self._experts.values()))["down"]
        hidden, intermediate = _header(self._tensors[name])[name]["shape"]
        return ExpertShape(hidden, intermediate)

    def fingerprint(self) -> str:
        """Tells models apart whose tensors or configuration differ in name, number format or shape. Reads no weights."""
        digest = hashlib.sha256((self.folder / "config.json").read_bytes())
        for file in sorted(set(self._tensors.values())):
            for name, entry in sorted(_header(file).items()):
                digest.update(f"{name} {entry['dtype']} {entry['shape']}\n".encode())
        return digest.hexdigest()

    def read(
        self, layer: int, experts: list[int], dtype: torch.dtype, padded: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights of some experts of a layer, in the order given: w13 (n, 2 * padded, hidden), w2 (n, hidden, padded).

        `padded` is at least the intermediate size; what is beyond it is zero. Raises `CheckpointError`.
        """
        import torch

        hidden, size = self.shape.hidden, self.shape.intermediate
        w13 = torch.zeros(len(experts), 2 * padded, hidden, dtype=dtype)
        w2 = torch.zeros(len(experts), hidden, padded, dtype=dtype)
        for place, expert in enumerate(experts):
            for part, tensor in self._parts(layer, expert):
                if tuple(tensor.shape) != ((hidden, size) if part == "down" else (size, hidden)):
                    raise CheckpointError(f"{part} of expert {expert} in layer {layer} has shape {tuple(tensor.shape)}")
                if part == "down":
                    w2[place, :, :size] = tensor
                else:
                    start = 0 if part == "gate" else padded
                    w13[place, start : start + size] = tensor
        return w13, w2

    def _parts(self, layer: int, expert: int) -> Iterator[tuple[str, torch.Tensor]]:
        from safetensors import safe_open

        names = self._experts.get((layer, expert))
        if names is None:
            raise CheckpointError(f"{self.folder} has no expert {expert} in layer {layer}")
        for part, name in names.items():
            # Opened for each tensor: a file that stays open keeps what was read of it in this process's memory.
            with safe_open(self._tensors[name], "pt") as file:
                yield part, file.get_tensor(name)

    def require(self, holds: Holding) -> None:
        """Raises `CheckpointError` for experts that the checkpoint does not have."""
        for layer, experts in holds.items():
            for expert in experts:
                if (layer, expert) not in self._experts:
                    raise CheckpointError(f"{self.folder} has no expert {expert} in layer {layer}")


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.exists():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{index} is no index of safetensors: {error}") from None
        if any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise CheckpointError(f"{index} names files outside its folder")
        return sorted(folder / name for name in names)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} has no safetensors")
    return files


def _header(file: Path) -> dict[str, Any]:
    """The header of a file in safetensors: name to number format, shape and place."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(f"{file} is no file in safetensors")
            header = json.loads(opened.read(length))
    except (OSError, ValueError, struct.error) as error:
        raise CheckpointError(f"{file} is no file in safetensors: {error}") from None
    header.pop("__metadata__", None)
    tensors: dict[str, Any] = header
    return tensors
