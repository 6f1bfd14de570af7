"""Folders of built models: published whole or not at all, and checked when used.

A build writes into a hidden sibling folder, then a manifest with a checksum per file is added, everything is
flushed to the disk, and one rename publishes it. A process killed at any moment leaves either no model or a whole
one; what it leaves of the hidden folder is removed by the next build of the same name. An advisory file lock,
which the kernel drops with its holder, keeps two builders apart.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deployments.models.errors import BuildError, DamagedModelError, ModelError

Progress = Callable[[str, float], None]
"""Called with what is being done and the fraction done, 0 to 1."""

MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 20
_LOCK_POLL_S = 0.2


class FileRecord(BaseModel):
    """What is known of one file of a built model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(ge=0, description="bytes")
    mtime_ns: int = Field(description="time of last change, nanoseconds since the epoch")
    sha256: str = Field(description="checksum, 64 hexadecimal digits")


class Manifest(BaseModel):
    """The list of files of a built model. Stored beside them as `manifest.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="name of the embedded model")
    recipe: str = Field(description="hash of the recipe that built it")
    files: dict[str, FileRecord] = Field(description="relative path of each file, manifest excluded")


def published(parent: Path, name: str, recipe: str) -> Path:
    """The folder in which the model `name` built by `recipe` is, once it has been built."""
    return parent / f"{name}-{recipe}"


def build(parent: Path, name: str, recipe: str, write: Callable[[Path, Progress], None], progress: Progress) -> Path:
    """Return the folder of a model, calling `write(folder, progress)` to make it when it is not there.

    A published folder that fails the quick check is removed and built again.

    Raises BuildError when `write` fails for another reason than a ModelError, which is passed on.
    """
    target = published(parent, name, recipe)
    if is_intact(target):
        return target
    parent.mkdir(parents=True, exist_ok=True)
    with _exclusive(parent / f".{name}.lock", lambda: progress(f"{name}: another process is building it", 0.0)):
        if is_intact(target):
            return target
        _remove_leftovers(parent, name)
        working = Path(tempfile.mkdtemp(prefix=f".building-{name}-", dir=parent))
        try:
            write(working, progress)
            _seal(working, name, recipe)
            if target.exists():
                progress(f"{name}: the files found are damaged, building them again", 0.99)
                target.rename(working.with_name(working.name + "-damaged"))
            working.rename(target)
            _flush(parent)
        except ModelError:
            raise
        except OSError as error:
            problem = f"building {name} in {parent} failed: {error}"
            raise BuildError(problem, "Free some disk space or choose another folder with POINTSMAN_CACHE") from error
        except Exception as error:
            problem = f"building {name} failed: {type(error).__name__}: {error}"
            raise BuildError(problem, "Try again; if it fails again, reinstall the locked dependencies") from error
        finally:
            _remove_leftovers(parent, name)
    progress(f"{name}: ready", 1.0)
    return target


def is_intact(folder: Path) -> bool:
    """Whether a published folder passes the quick check: every file there, with its size and time of change.

    A file whose time changed but not its size (the cache was copied) is checked by its checksum; when all are
    right the manifest takes over the new times, so that the next check is quick again.
    """
    manifest = _read_manifest(folder)
    if manifest is None:
        return False
    copied: dict[str, FileRecord] = {}
    for relative, record in manifest.files.items():
        try:
            status = (folder / relative).stat()
        except OSError:
            return False
        if status.st_size != record.size:
            return False
        if status.st_mtime_ns != record.mtime_ns:
            if _sha256(folder / relative) != record.sha256:
                return False
            copied[relative] = record.model_copy(update={"mtime_ns": status.st_mtime_ns})
    if copied and os.access(folder, os.W_OK):
        _write_manifest(folder, manifest.model_copy(update={"files": {**manifest.files, **copied}}))
    return True


def verify(folder: Path) -> None:
    """Read every file of a built model and compare checksums.

    Raises DamagedModelError naming the files that differ or are missing.
    """
    manifest = _read_manifest(folder)
    if manifest is None:
        problem = f"{folder} has no readable {MANIFEST}"
        raise DamagedModelError(problem, "Delete the folder; the model is built again when it is next used")
    wrong = [
        relative
        for relative, record in manifest.files.items()
        if not (folder / relative).is_file() or _sha256(folder / relative) != record.sha256
    ]
    if wrong:
        problem = f"{folder} is damaged: {', '.join(sorted(wrong))}"
        raise DamagedModelError(problem, "Delete the folder; the model is built again when it is next used")


def _seal(folder: Path, name: str, recipe: str) -> None:
    files: dict[str, FileRecord] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        _flush(path)
        status = path.stat()
        record = FileRecord(size=status.st_size, mtime_ns=status.st_mtime_ns, sha256=_sha256(path))
        files[path.relative_to(folder).as_posix()] = record
    if not files:
        raise BuildError(f"the builder of {name} wrote no files", "Reinstall the locked dependencies and try again")
    # mkdtemp makes the folder private; a published model is as readable as the other files of its owner.
    folder.chmod(0o755)
    _write_manifest(folder, Manifest(name=name, recipe=recipe, files=files))
    for directory in [*(p for p in folder.rglob("*") if p.is_dir()), folder]:
        _flush(directory)


def _read_manifest(folder: Path) -> Manifest | None:
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError):
        return None


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{MANIFEST}-", dir=folder)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(manifest.model_dump_json(indent=1))
        file.flush()
        os.fsync(file.fileno())
    Path(temporary).chmod(0o644)
    Path(temporary).replace(folder / MANIFEST)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(parent: Path, name: str) -> None:
    for leftover in parent.glob(f".building-{name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _exclusive(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    with path.open("a") as file:
        announced = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not announced:
                    on_wait()
                    announced = True
                time.sleep(_LOCK_POLL_S)
        yield
