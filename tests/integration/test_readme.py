"""What README.md tells a reader to type works, against a running cluster."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import pytest

from cluster.config.ingress import IngressConfig
from tests.readme_blocks import Block, lifecycle_command, make_targets, read_blocks

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = read_blocks(ROOT / "README.md")
TIMEOUT_S = 240


class RunningCluster(Protocol):
    """What the fixture `running_cluster` gives."""

    @property
    def url(self) -> str:
        """Where it answers, without a trailing slash."""

    @property
    def env(self) -> Mapping[str, str]:
        """The environment in which commands find it."""


def targets_of_makefile() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def script_of(block: Block, url: str) -> str:
    """The commands of a block as one script. What starts or stops a cluster, and `make`, is left to other tests."""
    default = IngressConfig()
    documented = re.compile(rf"http://(?:{re.escape(default.host)}|localhost):{default.port}\b")
    run = [command for command in block.commands if not make_targets(command) and not lifecycle_command(command)]
    return "".join(documented.sub(url, command) + "\n" for command in run)


def activated(block: Block) -> bool:
    """Whether the reader has been told by then to activate `.venv`, so that `pointsman` alone is found."""
    activate = re.compile(r"(?:source|\.) \.venv/bin/activate")
    told = [command for earlier in BLOCKS if earlier.line <= block.line for command in earlier.commands]
    return any(activate.match(command) for command in told)


def test_the_readme_has_commands() -> None:
    assert [target for block in BLOCKS for target in block.make_targets if target in {"up", "test"}] != []
    assert any(block.reason is None and script_of(block, "") for block in BLOCKS)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"line{block.line}")
def test_every_make_target_exists(block: Block) -> None:
    assert set(block.make_targets) <= targets_of_makefile()


@pytest.mark.timeout(TIMEOUT_S + 60)
@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.reason is None], ids=lambda block: f"line{block.line}"
)
def test_a_block_runs(block: Block, running_cluster: RunningCluster) -> None:
    environment = dict(running_cluster.env)
    if activated(block):
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    for command in block.commands:
        subcommand = lifecycle_command(command)
        if subcommand:
            subprocess.run(
                [str(Path(sys.executable).parent / "pointsman"), subcommand, "--help"],
                cwd=ROOT,
                env=environment,
                check=True,
                capture_output=True,
                timeout=TIMEOUT_S,
            )
    script = script_of(block, running_cluster.url)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, f"README.md, line {block.line}:\n{script}\n{done.stdout}\n{done.stderr}"
