"""Shows work that takes a while: a live picture on a terminal, a line per event elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from deployments.cli import output

_REFRESH_PER_S = 8
_BAR_WIDTH = 24


class Waiting:
    """Something that takes a while: a title, the time it takes, and a line per part of it."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._started = time.monotonic()
        self._parts: dict[str, _Part] = {}
        self._console = output.stderr()
        self._live: Live | None = None
        self._spinner = Spinner("dots", style="cyan")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(
                self, console=self._console, refresh_per_second=_REFRESH_PER_S, transient=True, redirect_stdout=False
            )
            self._live.start()
        else:
            output.remark(self._title)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    @property
    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._started

    def title(self, title: str) -> None:
        """Change what is being done."""
        if title != self._title and self._live is None:
            output.remark(title)
        self._title = title

    def part(self, name: str, text: str, fraction: float | None = None) -> None:
        """A part is being worked on; `fraction` of it is done (0 to 1), None if that is not known."""
        before = self._parts.get(name)
        started = before.started if before is not None else time.monotonic()
        self._parts[name] = _Part(text, fraction, started)
        if self._live is None and (before is None or before.text != text):
            output.remark(f"{self.elapsed_s:6.1f} s  {name}: {text}")

    def done(self, name: str, text: str, *, good: bool = True) -> None:
        """A part has ended, well or not; its line stays."""
        if name in self._parts and self._parts[name].good is not None and self._parts[name].text == text:
            return
        self._parts[name] = _Part(text, None, 0.0, good)
        if self._live is None:
            output.remark(f"{self.elapsed_s:6.1f} s  {name}: {text}")

    def __rich__(self) -> Group:
        """The picture at this moment."""
        self._spinner.update(text=Text.assemble((self._title, "bold"), (f"  {self.elapsed_s:.0f} s", "dim")))
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=3, justify="right")
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        grid.add_column(justify="right", style="dim", no_wrap=True)
        for name, part in self._parts.items():
            grid.add_row(part.mark(), name, part.shown(), part.age())
        return Group(self._spinner, grid) if self._parts else Group(self._spinner)


class _Part:
    def __init__(self, text: str, fraction: float | None, started: float, good: bool | None = None) -> None:
        self.text = text
        self.fraction = fraction
        self.started = started
        self.good = good

    def mark(self) -> Text:
        if self.good is None:
            return Text("·", style="dim")
        return Text("✓", style="green") if self.good else Text("✗", style="red")

    def shown(self) -> Text:
        if self.fraction is None:
            return Text(self.text, style="red" if self.good is False else "")
        done = round(_BAR_WIDTH * min(1.0, max(0.0, self.fraction)))
        return Text.assemble(
            ("━" * done, "cyan"), ("━" * (_BAR_WIDTH - done), "dim"), f" {self.fraction:4.0%}  ", (self.text, "dim")
        )

    def age(self) -> str:
        return "" if self.good is not None else f"{time.monotonic() - self.started:.0f} s"
