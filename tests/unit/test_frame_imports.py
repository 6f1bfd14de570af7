"""The import rules hold, and are really checked: a deliberate breach in a copy is found and named."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.import_contracts import is_allowed

ROOT = Path(__file__).resolve().parents[2]
LINT = "from importlinter.cli import lint_imports_command as lint; lint()"


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LINT, "--no-logo", "--no-cache"]
    environment = {"PYTHONPATH": str(root), "COLUMNS": "400", "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture
def small_copy(tmp_path: Path) -> Path:
    """The rules over three packages that keep them."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "import_contracts.py", tmp_path / "scripts")
    sources = {
        "cluster/__init__.py": "",
        "cluster/policy.py": "import json\n",
        "deployments/__init__.py": "import ray\nfrom cluster import policy\n",
        "deployments/engines/__init__.py": "",
        "deployments/engines/vllm_engine.py": "import vllm.v1\n",
        "deployments/replica.py": "from deployments.engines import vllm_engine\n",
        "loadtests/__init__.py": "from deployments import replica\n",
    }
    for name, source in sources.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return tmp_path


def test_the_code_keeps_the_rules() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_allowed_is_kept(small_copy: Path) -> None:
    done = lint_imports(small_copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Contracts: 5 kept, 0 broken." in done.stdout


@pytest.mark.parametrize(
    ("module", "line", "said"),
    [
        (
            "cluster/policy.py",
            "import deployments",
            "Imports point one way: cluster <- deployments <- loadtests BROKEN",
        ),
        (
            "deployments/replica.py",
            "import loadtests",
            "Imports point one way: cluster <- deployments <- loadtests BROKEN",
        ),
        ("cluster/policy.py", "import torch.nn", "The control plane decides; it runs nothing BROKEN"),
        ("cluster/policy.py", "from transformers import AutoTokenizer", "it runs nothing BROKEN"),
        ("cluster/policy.py", "import infra", "The control plane decides; it runs nothing BROKEN"),
        ("cluster/policy.py", "from ray import serve", "cluster.policy imports ray (line 2); only deployments may."),
        ("loadtests/__init__.py", "import ray", "loadtests imports ray (line 2); only deployments may."),
        (
            "loadtests/__init__.py",
            "import vllm",
            "loadtests imports vllm (line 2); only deployments.engines.vllm* may.",
        ),
        ("deployments/replica.py", "import vllm", "deployments.replica imports vllm (line 2); only"),
        ("deployments/engines/__init__.py", "import vllm.v1", "deployments.engines imports vllm (line 1); only"),
    ],
)
def test_a_breach_is_found_and_named(small_copy: Path, module: str, line: str, said: str) -> None:
    path = small_copy / module
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    done = lint_imports(small_copy)
    assert done.returncode == 1, done.stdout + done.stderr
    assert said in done.stdout


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("deployments.engines.vllm", True),
        ("deployments.engines.vllm_engine", True),
        ("deployments.engines.vllm_window.turns", True),
        ("deployments.engines", False),
        ("deployments.engines.simulated", False),
        ("deployments.engines.simulated.vllm_like", False),
        ("loadtests.vllm_server", False),
    ],
)
def test_the_pattern_takes_the_name_and_what_lies_in_it(module: str, allowed: bool) -> None:
    assert is_allowed(module, ["deployments.engines.vllm*"]) is allowed
