"""Makes `.venv` of this clone: its own code over the environment that all clones share.

Run by `make env` as `python3.11 -m scripts.bootstrap`, with nothing installed. A second or less when all is in place.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import venv

from scripts.progress import Progress, SetupError
from scripts.shared_environment import (
    ROOT,
    EnvironmentPlan,
    detect_accelerator,
    ensure_environment,
    plan_environment,
)

VENV = ROOT / ".venv"
STAMP = VENV / "pointsman.json"
_PTH = "_pointsman_environment.pth"


def metadata_hash(pyproject: str) -> str:
    """A hash of what an installed clone takes from `pyproject.toml`; settings of linters and tests are not of it."""
    content = tomllib.loads(pyproject)
    installed = {"project": content["project"], "build": content["build-system"], "hatch": content["tool"]["hatch"]}
    return hashlib.sha256(json.dumps(installed, sort_keys=True).encode()).hexdigest()


def clone_stamp(plan: EnvironmentPlan) -> dict[str, str]:
    """What `.venv` depends on: it is made anew when any of it changes (also when the clone has been moved)."""
    return {
        "clone": str(ROOT),
        "environment": str(plan.folder),
        "accelerator": plan.accelerator,
        "python": platform.python_version(),
        "project": metadata_hash((ROOT / "pyproject.toml").read_text(encoding="utf-8")),
    }


def clone_is_ready(stamp: dict[str, str]) -> bool:
    """Whether `.venv` was made to the end for this very `stamp`."""
    try:
        found = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(found == stamp) and (VENV / "bin" / "python").exists()


def make_clone(plan: EnvironmentPlan, stamp: dict[str, str]) -> None:
    """Make `.venv`: an empty environment that sees the shared one, and this clone installed in place."""
    shutil.rmtree(VENV, ignore_errors=True)
    venv.create(VENV, with_pip=False, symlinks=True)
    site_packages = VENV / "lib" / plan.site_packages.parent.name / "site-packages"
    # `addsitedir` rather than a plain path: the shared environment has .pth files of its own.
    (site_packages / _PTH).write_text(f"import site; site.addsitedir({str(plan.site_packages)!r})\n", encoding="utf-8")
    python = VENV / "bin" / "python"
    command = [*plan.pip(python), "install", "--quiet", "--no-input", "--no-index"]
    command += ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--editable", str(ROOT)]
    dropped = {"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_REQUIRE_HASHES"}
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise SetupError(f"This clone could not be installed into {VENV}:\n{done.stderr.strip()}")
    STAMP.write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    """Build what is missing. Exit code 1 with a sentence to act on if it cannot."""
    progress = Progress()
    started = time.monotonic()
    if sys.version_info[:2] != (3, 11):
        progress.say(
            f"Pointsman needs Python 3.11; this is {platform.python_version()}. Try `make PYTHON=/path/to/3.11`."
        )
        return 1
    # So that `kill` ends pip too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        plan = plan_environment(detect_accelerator(os.environ), os.environ)
        ensure_environment(plan, progress)
        stamp = clone_stamp(plan)
        if not clone_is_ready(stamp):
            make_clone(plan, stamp)
            progress.say(f"Ready for work: {VENV.name}/bin/pointsman ({time.monotonic() - started:.0f} s).")
    except SetupError as error:
        progress.say(str(error))
        return 1
    except KeyboardInterrupt:
        progress.say("Stopped. What is half done is built anew next time.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
