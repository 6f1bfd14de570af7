"""What a person sees while something long runs: a line now and then, the whole output in a log."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

_TAIL_LINES = 15


class SetupError(Exception):
    """Something that the person at the terminal has to change; the message says what."""


@dataclass
class Progress:
    """Prints steps and counts. On a terminal the count stays on one line, elsewhere it is a line every 15 s."""

    stream: TextIO = field(default_factory=lambda: sys.stderr)
    every_s: float = 15.0
    _last: float = field(default=0.0, init=False)

    def say(self, text: str) -> None:
        """One step."""
        self._last = time.monotonic()
        print(text, file=self.stream, flush=True)

    def count(self, done: int, total: int, what: str) -> None:
        """How far a step is."""
        text = f"  {done}/{total} {what}"
        if self.stream.isatty():
            print(f"\r\033[K{text[:100]}", end="\n" if done >= total else "", file=self.stream, flush=True)
        elif time.monotonic() - self._last >= self.every_s:
            self.say(text)


def run_logged(
    command: list[str],
    log: Path,
    progress: Progress,
    *,
    environment: Mapping[str, str],
    may_fail: bool = False,
    count: str | None = None,
    total: int = 0,
    hold: tuple[int, ...] = (),
) -> bool:
    """Run `command` with its output in `log`; lines that begin with `count` move the progress.

    The descriptors in `hold` stay open in the child: a file lock on one of them outlives a killed parent, until the
    child has ended too.
    Returns whether it succeeded. Raises `SetupError` with the end of its output if it failed and may not.
    """
    started = time.monotonic()
    tail: list[str] = []
    done = 0
    with (
        log.open("a", encoding="utf-8") as file,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=dict(environment),
            pass_fds=hold,
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                file.write(line)
                tail = [*tail[1 - _TAIL_LINES :], line.rstrip()]
                if count and line.startswith(count):
                    done += 1
                    progress.count(done, total, line.strip().removeprefix(count).split("==")[0].strip())
                elif line.startswith("Installing collected packages"):
                    progress.say(f"  all there after {time.monotonic() - started:.0f} s; unpacking")
        except BaseException:
            # Ctrl-C reaches the child too when it comes from a terminal; from elsewhere it does not.
            process.terminate()
            raise
        code = process.wait()
    if code != 0 and not may_fail:
        said = "\n".join(f"    {line}" for line in tail)
        raise SetupError(f"{Path(command[0]).name} failed ({code}). It ended with\n{said}\nAll of it is in {log}.")
    return code == 0
