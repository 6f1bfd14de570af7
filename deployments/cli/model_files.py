"""What of a model's files is on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.cli.obtain import find_ready

if TYPE_CHECKING:
    from cluster.config.model import ModelConfig


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model's files are, and how large."""

    state: str
    """`built`, `not built`, `here`, `downloaded`, `not downloaded`, `none needed`, or what is wrong."""
    path: Path | None = None
    size_bytes: int | None = None


def files_of(model: ModelConfig) -> ModelFiles:
    """Look, without building or downloading anything."""
    from cluster.config.engine import EngineType
    from deployments.models.errors import ModelError

    if model.source is None or model.engine.type in (EngineType.EXTERNAL, EngineType.SIMULATED):
        return ModelFiles("none needed")
    scheme = model.source.partition(":")[0]
    if scheme == "hf":
        folder = _downloaded(model.source.partition(":")[2])
        return ModelFiles("not downloaded") if folder is None else ModelFiles("downloaded", folder, _size(folder))
    try:
        folder = find_ready(model.source)
    except ModelError as error:
        return ModelFiles(error.problem)
    if folder is None:
        return ModelFiles("not built")
    return ModelFiles("built" if scheme == "embedded" else "here", folder, _size(folder))


def _downloaded(repository: str) -> Path | None:
    """The snapshot in the cache of huggingface_hub, whole as far as it knows."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = repository.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
        return None


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
