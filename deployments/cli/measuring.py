"""Runs the child process that measures a model."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import IO

import msgspec

from deployments.cli.errors import CliError
from deployments.cli.measure_messages import Done, Failed, MeasureMessage, Step, Task
from deployments.processes import OWNER_VARIABLE

OnStep = Callable[[Step], None]

_NOISE_CHARS = 1500


def run_task(task: Task, on_step: OnStep) -> Done:
    """The figures of a model; the child and its engine end with this process. Raises `CliError`."""
    decoder: msgspec.json.Decoder[MeasureMessage] = msgspec.json.Decoder(Step | Done | Failed)
    with tempfile.TemporaryFile() as noise:
        with subprocess.Popen(
            [sys.executable, "-m", "deployments.cli.measure_child", msgspec.json.encode(task).decode()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=noise,
            env={**os.environ, OWNER_VARIABLE: str(os.getpid())},
        ) as child:
            found: Done | Failed | None = None
            try:
                for line in child.stdout or ():
                    message = decoder.decode(line)
                    if isinstance(message, Step):
                        on_step(message)
                    else:
                        found = message
            except BaseException:
                child.kill()
                raise
        if isinstance(found, Failed):
            raise CliError(found.problem, found.remedy or None)
        if found is None:
            raise CliError(
                f"the process that measures ended with status {child.returncode}:\n{_tail(noise)}",
                "Status -9 is often a lack of memory.",
            )
        return found


def _tail(noise: IO[bytes]) -> str:
    noise.seek(0)
    return noise.read().decode("utf-8", "replace").strip()[-_NOISE_CHARS:] or "(it said nothing)"
