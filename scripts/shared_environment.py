"""Builds the locked Python environment that all clones on this machine share.

It lies in the user's cache, in a folder named by the hash of what went into it, so a changed lock makes a new one and
an unchanged lock costs nothing. Virtual environments cannot be moved, so it is built in place; a marker written last
says that it is whole, and a file lock keeps two clones from building the same one.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.progress import Progress, SetupError, run_logged

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
MARKER = ".complete"
ACCELERATORS = ("cpu", "cuda")
NVIDIA_DEVICE = Path("/dev/nvidia0")
# What is to be free before it starts, pip's downloads included. Measured once built: 3.4 GB for the CPU, and 6.4 GB with
# the torch of PyPI. CUDA's is an estimate.
NEEDED_GB = {"cpu": 6, "cpu with PyPI's torch": 10, "cuda": 20}
_ABSENT = ("No matching distribution found", "Could not find a version that satisfies")
_PIP = ("install", "--no-deps", "--require-hashes", "--no-compile", "--no-input", "--progress-bar", "off")


@dataclass(frozen=True)
class EnvironmentPlan:
    """What is to be installed, and where."""

    accelerator: str
    folder: Path
    locks: tuple[Path, ...]

    @property
    def python(self) -> Path:
        """The interpreter of the environment."""
        return self.folder / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        """Where the packages lie."""
        return self.folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"

    def pip(self, target: Path | None = None) -> list[str]:
        """The pip that installs into `target` (the environment itself if left out)."""
        if (self.site_packages / "pip").is_dir():
            own = [str(self.python), "-m", "pip"]
            return own if target is None else [*own, "--python", str(target)]
        return [sys.executable, "-m", "pip", "--python", str(target or self.python)]

    def is_complete(self) -> bool:
        """Whether it was built to the end and its interpreter still exists."""
        return (self.folder / MARKER).is_file() and self.python.exists()


def detect_accelerator(environment: Mapping[str, str]) -> str:
    """`cpu` or `cuda`, by what the machine has; `POINTSMAN_ACCELERATOR` overrides. Raises `SetupError` if unknown."""
    chosen = environment.get("POINTSMAN_ACCELERATOR", "").strip().lower()
    if chosen:
        if chosen not in ACCELERATORS:
            raise SetupError(f"POINTSMAN_ACCELERATOR is {chosen!r}; set it to cpu or cuda, or leave it out.")
        return chosen
    if NVIDIA_DEVICE.exists():
        return "cuda"
    nvidia_smi = shutil.which("nvidia-smi")
    if nvidia_smi is None:
        return "cpu"
    listed = subprocess.run([nvidia_smi, "-L"], capture_output=True, text=True, check=False)
    return "cuda" if listed.returncode == 0 and "GPU" in listed.stdout else "cpu"


def plan_environment(accelerator: str, environment: Mapping[str, str]) -> EnvironmentPlan:
    """Name the folder after the locks, this Python and the accelerator."""
    names = ("cpu.txt", "torch-cpu.txt", "torch-pypi.txt") if accelerator == "cpu" else ("gpu.txt",)
    locks = tuple(REQUIREMENTS / name for name in names)
    digest = hashlib.sha256(f"{accelerator} {platform.python_version()} {platform.machine()}".encode())
    for lock in locks:
        digest.update(lock.read_bytes())
    cache = Path(environment.get("POINTSMAN_CACHE") or Path.home() / ".cache" / "pointsman").expanduser()
    return EnvironmentPlan(accelerator, cache.resolve() / "env" / digest.hexdigest()[:16], locks)


def ensure_environment(plan: EnvironmentPlan, progress: Progress) -> None:
    """Return once the environment is whole; build it if need be. Raises `SetupError` saying what to do."""
    if plan.is_complete():
        return
    if platform.machine() != "x86_64" or sys.platform != "linux":
        raise SetupError(f"The locks are for Linux on x86_64; this is {sys.platform} on {platform.machine()}.")
    plan.folder.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(plan.folder.with_suffix(".lock"), progress) as lock:
        if plan.is_complete():
            return
        shutil.rmtree(plan.folder, ignore_errors=True)
        _refuse_full_disk(plan, NEEDED_GB[plan.accelerator])
        progress.say(f"Building the Python environment in {plan.folder} (once for all clones; some minutes).")
        _build(plan, progress, lock)


def has_ensurepip() -> bool:
    """Whether Python can put pip into a new environment. Debian's cannot without python3.11-venv; its pip will do."""
    return importlib.util.find_spec("ensurepip") is not None


def _build(plan: EnvironmentPlan, progress: Progress, hold: int) -> None:
    log = plan.folder.with_suffix(".log")
    log.unlink(missing_ok=True)
    venv.create(plan.folder, with_pip=has_ensurepip(), symlinks=True)
    if plan.accelerator == "cpu":
        torch_lock = _install_torch(plan, log, progress, hold)
        installed = ["cpu.txt", torch_lock.name]
        _install(plan, REQUIREMENTS / "cpu.txt", log, progress, hold)
    else:
        installed = ["gpu.txt"]
        _install(plan, REQUIREMENTS / "gpu.txt", log, progress, hold)
    # One process per core, where pip compiles one file after another. Some packages carry files for other versions of
    # Python; these fail to compile, which hurts nobody.
    progress.say("Compiling the packages to byte code.")
    compile_all = [str(plan.python), "-m", "compileall", "-q", "-j", "0", str(plan.site_packages)]
    run_logged(compile_all, log, progress, environment=_clean_environment(), may_fail=True, hold=(hold,))
    marker = {"accelerator": plan.accelerator, "python": platform.python_version(), "locks": installed}
    (plan.folder / MARKER).write_text(json.dumps(marker) + "\n", encoding="utf-8")
    log.unlink(missing_ok=True)
    progress.say("The Python environment is in place.")


def _install_torch(plan: EnvironmentPlan, log: Path, progress: Progress, hold: int) -> Path:
    """Install the CPU build if pip can find it, else the one on PyPI, which needs NVIDIA's libraries to be imported."""
    cpu_build, pypi_build = REQUIREMENTS / "torch-cpu.txt", REQUIREMENTS / "torch-pypi.txt"
    if _install(plan, cpu_build, log, progress, hold, may_be_absent=True):
        return cpu_build
    _refuse_full_disk(plan, NEEDED_GB["cpu with PyPI's torch"])
    progress.say("pip finds no CPU build of torch; taking the one on PyPI with the libraries it needs (3 GB more).")
    _install(plan, pypi_build, log, progress, hold)
    return pypi_build


def _install(
    plan: EnvironmentPlan, lock: Path, log: Path, progress: Progress, hold: int, *, may_be_absent: bool = False
) -> bool:
    """Install a lock. Returns False if `may_be_absent` and pip knows no such file."""
    total = sum("==" in line for line in lock.read_text(encoding="utf-8").splitlines())
    progress.say(f"Installing {total} package{'s' * (total > 1)} of {lock.relative_to(ROOT)}.")
    command = [*plan.pip(), *_PIP, "-r", str(lock)]
    done = run_logged(
        command,
        log,
        progress,
        environment=_clean_environment(),
        may_fail=may_be_absent,
        count="Collecting",
        total=total,
        hold=(hold,),
    )
    if done:
        return True
    if not any(sign in log.read_text(encoding="utf-8", errors="replace") for sign in _ABSENT):
        raise SetupError(f"pip could not install {lock.relative_to(ROOT)}. What it said is in {log}.")
    return False


def _clean_environment() -> dict[str, str]:
    """The caller's environment (its package index, proxies, certificates) without what would install elsewhere."""
    drop = {"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_REQUIRE_VIRTUALENV", "PIP_NO_DEPS"}
    kept = {name: value for name, value in os.environ.items() if name not in drop}
    return {**kept, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONNOUSERSITE": "1"}


def _refuse_full_disk(plan: EnvironmentPlan, needed: int) -> None:
    free = shutil.disk_usage(plan.folder.parent).free / 1e9
    if free < needed:
        raise SetupError(
            f"The environment needs {needed} GB in {plan.folder.parent}, and {free:.1f} GB are free. "
            "Free some, or set POINTSMAN_CACHE to a folder with more room."
        )


@contextmanager
def _only_one(path: Path, progress: Progress) -> Iterator[int]:
    """Hold the lock file; yields its descriptor, so that what installs can hold it too."""
    with path.open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say("Another clone is building this environment; waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()
