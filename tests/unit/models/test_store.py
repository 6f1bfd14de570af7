"""Built models are published whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from deployments.models import store
from deployments.models.errors import BuildError, DamagedModelError, MissingFilesError
from deployments.models.store import Progress


def _silent(message: str, fraction: float) -> None:
    """A progress callback that says nothing."""


def _write(folder: Path, progress: Progress) -> None:
    (folder / "weights").mkdir()
    (folder / "weights" / "part.bin").write_bytes(b"w" * 5000)
    (folder / "config.json").write_text("{}")
    progress("half", 0.5)


def test_a_build_is_published_with_its_manifest(tmp_path: Path) -> None:
    said: list[tuple[str, float]] = []
    folder = store.build(tmp_path, "toy", "abc", _write, lambda message, fraction: said.append((message, fraction)))
    assert folder == tmp_path / "toy-abc"
    manifest = json.loads((folder / store.MANIFEST).read_text())
    assert set(manifest["files"]) == {"weights/part.bin", "config.json"}
    assert manifest["files"]["weights/part.bin"]["size"] == 5000
    assert said == [("half", 0.5), ("toy: ready", 1.0)]
    assert store.is_intact(folder)
    store.verify(folder)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".building")] == []


def test_a_built_model_is_not_built_again(tmp_path: Path) -> None:
    store.build(tmp_path, "toy", "abc", _write, _silent)

    def fail(folder: Path, progress: Progress) -> None:
        raise RuntimeError("built twice")

    store.build(tmp_path, "toy", "abc", fail, _silent)


def test_a_change_that_keeps_the_size_is_found_by_verify(tmp_path: Path) -> None:
    folder = store.build(tmp_path, "toy", "abc", _write, _silent)
    weights = folder / "weights" / "part.bin"
    before = weights.stat().st_mtime_ns
    weights.write_bytes(b"w" * 4999 + b"x")
    os.utime(weights, ns=(before, before))
    assert store.is_intact(folder), "the quick check reads no file whose size and time are unchanged"
    with pytest.raises(DamagedModelError, match=r"weights/part\.bin.*Delete the folder"):
        store.verify(folder)


@pytest.mark.parametrize("damage", ["truncate", "remove", "rewrite", "manifest"])
def test_a_damaged_model_is_built_again(tmp_path: Path, damage: str) -> None:
    folder = store.build(tmp_path, "toy", "abc", _write, _silent)
    weights = folder / "weights" / "part.bin"
    if damage == "truncate":
        weights.write_bytes(b"w")
    elif damage == "remove":
        weights.unlink()
    elif damage == "rewrite":
        weights.write_bytes(b"v" * 5000)
        os.utime(weights, ns=(1, 1))
    else:
        (folder / store.MANIFEST).write_text("{")
    assert not store.is_intact(folder)
    store.build(tmp_path, "toy", "abc", _write, _silent)
    store.verify(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".toy.lock", "toy-abc"]


def test_a_copied_cache_is_accepted_and_quick_again(tmp_path: Path) -> None:
    folder = store.build(tmp_path / "a", "toy", "abc", _write, _silent)
    copy = tmp_path / "b" / "toy-abc"
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    for path in copy.rglob("*.*"):
        os.utime(path, ns=(5, 5))
    assert store.is_intact(copy)
    manifest = json.loads((copy / store.MANIFEST).read_text())
    assert manifest["files"]["config.json"]["mtime_ns"] == 5


def test_a_failed_build_leaves_nothing_and_says_what_failed(tmp_path: Path) -> None:
    def fail(folder: Path, progress: Progress) -> None:
        (folder / "half.bin").write_bytes(b"1")
        raise ZeroDivisionError("by zero")

    with pytest.raises(BuildError, match="building toy failed: ZeroDivisionError: by zero"):
        store.build(tmp_path, "toy", "abc", fail, _silent)
    assert [path.name for path in tmp_path.iterdir()] == [".toy.lock"]


def test_a_full_disk_says_so(tmp_path: Path) -> None:
    def fail(folder: Path, progress: Progress) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(BuildError, match=r"No space left on device.*POINTSMAN_CACHE"):
        store.build(tmp_path, "toy", "abc", fail, _silent)


def test_an_error_with_a_remedy_passes_through(tmp_path: Path) -> None:
    def fail(folder: Path, progress: Progress) -> None:
        raise MissingFilesError("a file is missing", "Fetch it")

    with pytest.raises(MissingFilesError, match="Fetch it"):
        store.build(tmp_path, "toy", "abc", fail, _silent)


def test_a_build_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="wrote no files"):
        store.build(tmp_path, "toy", "abc", lambda folder, progress: None, _silent)


_SLOW_BUILD = """
import sys, time
from pathlib import Path
from deployments.models import store

def write(folder, progress):
    (folder / "half.bin").write_bytes(b"1" * 1000)
    print("writing", flush=True)
    time.sleep(60)

store.build(Path(sys.argv[1]), "toy", "abc", write, lambda message, fraction: None)
"""


def test_a_killed_build_leaves_no_model_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _SLOW_BUILD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "writing\n"
        builder.send_signal(signal.SIGKILL)
    assert not (tmp_path / "toy-abc").exists()
    assert len(list(tmp_path.glob(".building-toy-*"))) == 1, "the kill came before the leftovers it is about"
    store.verify(store.build(tmp_path, "toy", "abc", _write, _silent))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".toy.lock", "toy-abc"]


def test_two_builders_build_once(tmp_path: Path) -> None:
    built: list[str] = []
    said: list[str] = []
    started = threading.Event()

    def slow(folder: Path, progress: Progress) -> None:
        built.append(folder.name)
        started.set()
        time.sleep(0.3)
        _write(folder, progress)

    first = threading.Thread(target=store.build, args=(tmp_path, "toy", "abc", slow, _silent))
    first.start()
    started.wait(5)
    folder = store.build(tmp_path, "toy", "abc", slow, lambda message, fraction: said.append(message))
    first.join(5)
    assert len(built) == 1
    assert said == ["toy: another process is building it"]
    store.verify(folder)
