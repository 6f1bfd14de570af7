"""The environment builder: what it chooses, when it builds, and that nothing half done is ever taken for whole."""

from __future__ import annotations

import fcntl
import io
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from scripts import shared_environment
from scripts.bootstrap import metadata_hash
from scripts.progress import Progress, SetupError, run_logged
from scripts.shared_environment import MARKER, EnvironmentPlan, detect_accelerator, ensure_environment, plan_environment

LOCKS = ("cpu.txt", "torch-cpu.txt", "torch-pypi.txt", "gpu.txt")


@pytest.fixture
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "requirements"
    folder.mkdir()
    for name in LOCKS:
        (folder / name).write_text("one==1 \\\n    --hash=sha256:00\n", encoding="utf-8")
    monkeypatch.setattr(shared_environment, "REQUIREMENTS", folder)
    monkeypatch.setattr(shared_environment, "ROOT", tmp_path)
    return folder


@pytest.fixture
def plan(locks: Path, tmp_path: Path) -> EnvironmentPlan:
    return plan_environment("cpu", {"POINTSMAN_CACHE": str(tmp_path / "cache")})


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for the minutes of pip; notes each build and what it found in the folder."""
    done: list[str] = []

    def build(plan: EnvironmentPlan, progress: Progress, hold: int) -> None:
        done.append(",".join(sorted(path.name for path in plan.folder.glob("*"))))
        time.sleep(0.05)
        plan.python.parent.mkdir(parents=True)
        plan.python.symlink_to(sys.executable)
        (plan.folder / MARKER).touch()

    monkeypatch.setattr(shared_environment, "_build", build)
    return done


@pytest.fixture
def silent() -> Progress:
    return Progress(stream=io.StringIO())


def test_the_environment_variable_chooses_the_accelerator() -> None:
    assert detect_accelerator({"POINTSMAN_ACCELERATOR": "cuda"}) == "cuda"
    assert detect_accelerator({"POINTSMAN_ACCELERATOR": " CPU "}) == "cpu"
    with pytest.raises(SetupError, match="'tpu'; set it to cpu or cuda"):
        detect_accelerator({"POINTSMAN_ACCELERATOR": "tpu"})


@pytest.mark.parametrize(
    ("script", "chosen"),
    [("echo 'GPU 0: NVIDIA H100'", "cuda"), ("echo 'No devices were found'", "cpu"), ("echo GPU; exit 9", "cpu")],
)
def test_nvidia_smi_tells_what_the_machine_has(
    script: str, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi = tmp_path / "nvidia-smi"
    nvidia_smi.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    nvidia_smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(shared_environment, "NVIDIA_DEVICE", tmp_path / "no-device")
    assert detect_accelerator({}) == chosen


def test_a_device_file_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_environment, "NVIDIA_DEVICE", tmp_path)
    assert detect_accelerator({}) == "cuda"


def test_the_folder_is_named_by_what_goes_into_it(locks: Path) -> None:
    cache = {"POINTSMAN_CACHE": "/cache"}
    cpu, gpu = plan_environment("cpu", cache).folder, plan_environment("cuda", cache).folder
    assert cpu != gpu
    assert cpu.parent == Path("/cache/env")
    (locks / "gpu.txt").write_text("one==2 \\\n    --hash=sha256:00\n", encoding="utf-8")
    assert plan_environment("cpu", cache).folder == cpu
    assert plan_environment("cuda", cache).folder != gpu
    (locks / "torch-cpu.txt").write_text("one==2 \\\n    --hash=sha256:00\n", encoding="utf-8")
    assert plan_environment("cpu", cache).folder != cpu


def test_what_is_whole_is_not_built_again(plan: EnvironmentPlan, builds: list[str], silent: Progress) -> None:
    ensure_environment(plan, silent)
    ensure_environment(plan, silent)
    assert builds == [""]


def test_what_is_half_done_is_removed_first(plan: EnvironmentPlan, builds: list[str], silent: Progress) -> None:
    (plan.folder / "half").mkdir(parents=True)
    ensure_environment(plan, silent)
    assert builds == [""]
    assert not (plan.folder / "half").exists()


def test_an_environment_whose_python_is_gone_is_built_again(
    plan: EnvironmentPlan, builds: list[str], silent: Progress
) -> None:
    ensure_environment(plan, silent)
    plan.python.unlink()
    plan.python.symlink_to("/nowhere/python3.11")
    ensure_environment(plan, silent)
    assert len(builds) == 2


def test_a_failed_build_leaves_nothing_that_looks_whole(
    plan: EnvironmentPlan, monkeypatch: pytest.MonkeyPatch, silent: Progress
) -> None:
    def fail(plan: EnvironmentPlan, lock: Path, *_: object, **__: bool) -> bool:
        raise SetupError(f"no {lock.name}")

    monkeypatch.setattr(shared_environment, "_install", fail)
    monkeypatch.setattr(shared_environment.venv, "create", lambda folder, **_: folder.mkdir())
    with pytest.raises(SetupError, match=r"no torch-cpu\.txt"):
        ensure_environment(plan, silent)
    assert not plan.is_complete()


def test_clones_that_start_together_build_once(plan: EnvironmentPlan, builds: list[str], silent: Progress) -> None:
    clones = [threading.Thread(target=ensure_environment, args=(plan, silent)) for _ in range(4)]
    for clone in clones:
        clone.start()
    for clone in clones:
        clone.join()
    assert builds == [""]
    assert plan.is_complete()


def test_a_full_disk_is_refused_before_anything_is_fetched(
    plan: EnvironmentPlan, monkeypatch: pytest.MonkeyPatch, builds: list[str], silent: Progress
) -> None:
    monkeypatch.setattr(shared_environment, "NEEDED_GB", {"cpu": 10**9})
    with pytest.raises(SetupError, match="set POINTSMAN_CACHE to a folder with more room"):
        ensure_environment(plan, silent)
    assert builds == []


@pytest.mark.parametrize(
    ("said", "lock"),
    [("exit 0", "torch-cpu.txt"), ("echo 'ERROR: No matching distribution found'; exit 1", "torch-pypi.txt")],
)
def test_torch_from_pypi_is_taken_only_when_there_is_no_cpu_build(
    said: str, lock: str, plan: EnvironmentPlan, tmp_path: Path, silent: Progress
) -> None:
    fake_python(plan, f'case "$*" in *torch-cpu.txt*) {said};; esac')
    assert shared_environment._install_torch(plan, tmp_path / "log", silent, 2).name == lock


def test_any_other_failure_of_pip_is_an_error(plan: EnvironmentPlan, tmp_path: Path, silent: Progress) -> None:
    fake_python(plan, "echo 'THESE PACKAGES DO NOT MATCH THE HASHES'; exit 1")
    with pytest.raises(SetupError, match=r"pip could not install requirements/torch-cpu\.txt"):
        shared_environment._install_torch(plan, tmp_path / "log", silent, 2)


def fake_python(plan: EnvironmentPlan, script: str) -> None:
    plan.python.parent.mkdir(parents=True)
    plan.python.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    plan.python.chmod(0o755)


def test_the_own_pip_is_used_where_there_is_one(plan: EnvironmentPlan) -> None:
    assert plan.pip() == [sys.executable, "-m", "pip", "--python", str(plan.python)]
    assert plan.pip(Path("/clone/python")) == [sys.executable, "-m", "pip", "--python", "/clone/python"]
    (plan.site_packages / "pip").mkdir(parents=True)
    assert plan.pip() == [str(plan.python), "-m", "pip"]
    assert plan.pip(Path("/clone/python")) == [str(plan.python), "-m", "pip", "--python", "/clone/python"]


def test_a_failed_command_shows_its_last_lines_and_its_log(tmp_path: Path, silent: Progress) -> None:
    command = ["/bin/sh", "-c", "seq 40; echo the reason; exit 3"]
    with pytest.raises(SetupError) as caught:
        run_logged(command, tmp_path / "log", silent, environment=os.environ)
    message = str(caught.value)
    assert message.startswith("sh failed (3).")
    assert "the reason" in message
    assert "    26\n" not in message
    assert str(tmp_path / "log") in message
    assert (tmp_path / "log").read_text(encoding="utf-8").startswith("1\n2\n")


def test_the_lock_outlives_a_killed_builder_while_pip_still_writes(tmp_path: Path, silent: Progress) -> None:
    path, go = tmp_path / "lock", tmp_path / "go"
    os.mkfifo(go)
    held = os.open(path, os.O_CREAT | os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    command = ["/bin/sh", "-c", f"echo Collecting; read line < {go}"]
    started = threading.Event()
    silent.count = lambda *_: started.set()  # type: ignore[method-assign]
    options = {"environment": os.environ, "count": "Collecting", "hold": (held,)}
    child = threading.Thread(target=run_logged, args=(command, tmp_path / "log", silent), kwargs=options)
    child.start()
    assert started.wait(10)
    os.close(held)
    with path.open("w", encoding="utf-8") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        go.write_text("on\n", encoding="utf-8")
        child.join()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_clone_is_made_anew_for_its_metadata_not_for_a_lint_rule() -> None:
    base = '[build-system]\nrequires=[]\n[project]\nversion="{}"\n[tool.hatch]\na=1\n[tool.ruff]\nline-length={}\n'
    assert metadata_hash(base.format("1", 120)) == metadata_hash(base.format("1", 100))
    assert metadata_hash(base.format("1", 120)) != metadata_hash(base.format("2", 120))


def test_counted_lines_are_shown_now_and_then(tmp_path: Path) -> None:
    shown = io.StringIO()
    command = ["/bin/sh", "-c", "echo Collecting one==1; echo noise; echo Collecting two==2"]
    progress = Progress(stream=shown, every_s=0.0)
    run_logged(command, tmp_path / "log", progress, environment=os.environ, count="Collecting", total=2)
    assert shown.getvalue() == "  1/2 one\n  2/2 two\n"
