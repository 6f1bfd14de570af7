"""Everything that the command line prints goes through here.

Results go to stdout, progress and remarks to stderr. Without a terminal there are no colours, no animation and no
cutting of lines; `NO_COLOR` switches colours off anywhere.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deployments.cli.errors import CliError

PIPED_WIDTH = 4096
"""Columns assumed where nobody looks: wide enough that no table cell is cut."""

DRAWING_WIDTH = 120
"""Columns of a drawing (a trace) where nobody looks."""

_KEPT_CONTROLS = frozenset("\n\t")


def stdout(piped_width: int = PIPED_WIDTH) -> Console:
    """The console for results."""
    return _console(sys.stdout.isatty(), piped_width, stderr=False)


def stderr() -> Console:
    """The console for progress, remarks and errors."""
    return _console(sys.stderr.isatty(), PIPED_WIDTH, stderr=True)


def _console(terminal: bool, piped_width: int, *, stderr: bool) -> Console:
    width = None if terminal or os.environ.get("COLUMNS", "").isdigit() else piped_width
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=width)


def print_json(value: object) -> None:
    """A value as indented JSON on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_line(*parts: str | tuple[str, str]) -> None:
    """A line on stdout, of plain text and `(text, style)` pairs. Long lines are left to the terminal to break."""
    stdout().print(Text.assemble(*parts), soft_wrap=True)


def remark(*parts: str | tuple[str, str]) -> None:
    """A line on stderr."""
    stderr().print(Text.assemble(*parts), soft_wrap=True)


def warn(message: str) -> None:
    """A warning on stderr."""
    remark(("warning: ", "bold yellow"), message)


def print_error(error: CliError) -> None:
    """An error and what to do about it, on stderr."""
    remark(("error: ", "bold red"), error.message)
    if error.remedy:
        remark(error.remedy)


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table without lines; the columns named in `right` hold numbers."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", no_wrap=column in right)
    return made


def visible(text: str) -> str:
    """Text of foreign origin without control characters, so that it cannot steer the terminal."""
    return "".join(
        character if character.isprintable() or character in _KEPT_CONTROLS else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


def size(count: float) -> str:
    """A number of bytes in binary units, three digits."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 999.5 or unit == "GiB":
            return f"{count:.{0 if count >= 99.95 else 1}f} {unit}"
    return f"{count:.1f} GiB"


def duration(seconds: float) -> str:
    """A time span for people: `0.42 s`, `12 s`, `3 min 5 s`, `2 h 10 min`, `3 d 4 h`."""
    if seconds < 9.95:
        return f"{seconds:.2f} s" if seconds < 0.995 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"
