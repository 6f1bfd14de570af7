"""Draws traces for a terminal: a tree with durations and a bar of time, a table of recent traces, and both as JSON.

Pure: spans in, something `rich` can print out. Everything from a span is shown as plain text without control
characters, so that what a caller or a library put there cannot steer the terminal.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from cluster.telemetry import names
from deployments.telemetry.shown import IN_SECONDS, SHOWN_ATTRIBUTES
from deployments.telemetry.spans import Attributes, AttributeValue, SpanLink, StoredSpan, TraceSummary
from deployments.telemetry.tree import MAX_DEPTH, FoldedLine, TraceTree, TreeLine, build_tree

DEFAULT_MAX_LINES: Final = 300

_BAR_WIDTH: Final = 24
_MAX_NAME: Final = 60
_MAX_VALUE: Final = 120
_MAX_EVENTS: Final = 12
_SHORT_ID: Final = 8


def render_trace(
    spans: Sequence[StoredSpan], *, max_lines: int = DEFAULT_MAX_LINES, all_attributes: bool = False
) -> TraceView:
    """The spans of one trace as a tree of at most about `max_lines` spans, the rest counted.

    `all_attributes` shows every attribute instead of those that tell what happened. Raises `ValueError` for no spans.
    """
    return TraceView(spans, max_lines, all_attributes)


class TraceView:
    """A drawn trace; fits itself to the console that prints it."""

    def __init__(self, spans: Sequence[StoredSpan], max_lines: int, all_attributes: bool) -> None:
        self._spans = tuple(spans)
        self._tree: TraceTree = build_tree(self._spans, max_lines)
        self._all_attributes = all_attributes

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The lines, cut to the console's width; ASCII only where its encoding has no more."""
        glyphs = _ASCII if options.ascii_only else _UNICODE
        yield _heading(self._spans, self._tree)
        wide = options.max_width >= 80
        bar = _BAR_WIDTH if wide else 0
        taken = bar + (1 if bar else 0) + 11
        label_width = max(20, options.max_width - taken)
        for line in self._tree.lines:
            yield from self._line(line, glyphs, label_width, bar)

    def _line(self, line: TreeLine | FoldedLine, glyphs: _Glyphs, width: int, bar: int) -> Iterator[Text]:
        branch, below = _branches(line.last, glyphs)
        if isinstance(line, FoldedLine):
            failed = f", {line.errors} failed" if line.errors else ""
            text = Text(branch, style="dim", no_wrap=True, overflow="ellipsis")
            text.append(f"{line.spans} more spans, {duration(line.total_ns)} in all{failed}")
            yield text
            return
        span = line.span
        failed_style = "bold red" if span.status == "error" else "bold"
        label = Text(no_wrap=True)
        label.append(branch, style="dim")
        label.append(_clean(span.name, _MAX_NAME) or "(no name)", style=failed_style)
        if span.process:
            label.append(f"  {_clean(span.process, _MAX_NAME)}", style="cyan")
        label.truncate(width, overflow="ellipsis" if not glyphs.ascii else "crop", pad=True)
        label.append(f" {duration(span.duration_ns):>10}", style="red" if span.status == "error" else "green")
        if bar:
            label.append(" ")
            label.append(_bar(span, self._tree, bar, glyphs), style="red" if span.status == "error" else "blue")
        label.rstrip()
        yield label
        for note, style in self._notes(line, glyphs):
            text = Text(no_wrap=True, overflow="ellipsis")
            text.append(f"{below}  ", style="dim")
            text.append(note, style=style)
            yield text

    def _notes(self, line: TreeLine, glyphs: _Glyphs) -> Iterator[tuple[str, str]]:
        span = line.span
        if self._all_attributes:
            # A line each: side by side all but the first few would be cut at the terminal's edge.
            for key, value in sorted(span.attributes.items()):
                yield f"{_clean(key, _MAX_NAME)}={_value(key, value)}", "none"
        elif shown := _attributes(span.attributes, False):
            yield shown, "none"
        if not self._all_attributes and (experts := _experts(span.attributes)):
            yield experts, "none"
        if span.status == "error":
            yield f"{glyphs.cross} {_clean(span.status_message, _MAX_VALUE) or 'failed'}", "red"
        for event in span.events[:_MAX_EVENTS]:
            after = duration(max(0, event.time_ns - span.start_ns))
            details = _attributes(event.attributes, True)
            failed = "exception" in event.name or "error" in event.name
            text = f"{glyphs.dot} {_clean(event.name, _MAX_NAME)} +{after}" + (f"  {details}" if details else "")
            yield text, "red" if failed else "yellow"
        if len(span.events) > _MAX_EVENTS:
            yield f"{glyphs.dot} {len(span.events) - _MAX_EVENTS} more events", "dim"
        for link in span.links:
            yield f"{glyphs.link} {_link(link)}", "magenta"
        if line.orphan and span.kind != "server":
            yield f"its parent {span.parent_id} is not in the store", "dim"
        elif line.orphan:
            yield f"continues the caller's span {span.parent_id}", "dim"
        if line.skew_ns:
            yield f"begins {duration(line.skew_ns)} before its parent: the clocks of their machines differ", "yellow"


def render_trace_list(traces: Sequence[TraceSummary]) -> Table:
    """Recent traces as a table, one line each."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("trace", "when (UTC)", "request", "model"):
        table.add_column(header, no_wrap=True)
    for header in ("duration", "spans"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    for trace in traces:
        root = trace.root
        model = root.attributes.get(names.RESPONSE_MODEL, root.attributes.get(names.REQUEST_MODEL, "")) if root else ""
        table.add_row(
            Text(trace.trace_id),
            Text(_when(trace.start_ns)),
            Text(_clean(root.name, _MAX_NAME) if root else "(no root)"),
            Text(_clean(str(model), _MAX_NAME)),
            Text(duration(trace.duration_ns)),
            Text(str(trace.spans)),
            _outcome(trace),
        )
    return table


def _outcome(trace: TraceSummary) -> Text:
    if trace.errors:
        return Text(f"{trace.errors} failed", style="red")
    status = trace.root.attributes.get(names.HTTP_STATUS) if trace.root else None
    if isinstance(status, int) and status >= 400:
        # No fault of the cluster, so no span has failed; but no answer either.
        return Text(f"refused ({status})", style="yellow")
    return Text("ok", style="green")


def to_json(spans: Sequence[StoredSpan]) -> str:
    """The spans of one trace as a JSON object, for scripts: `trace_id` and `spans` in order of time."""
    ordered = sorted(spans, key=lambda span: (span.start_ns, -span.end_ns))
    trace_id = ordered[0].trace_id if ordered else None
    return json.dumps({"trace_id": trace_id, "spans": [asdict(span) for span in ordered]}, indent=2)


def list_to_json(traces: Sequence[TraceSummary]) -> str:
    """Recent traces as a JSON array, for scripts."""
    return json.dumps([asdict(trace) for trace in traces], indent=2)


def duration(nanoseconds: int) -> str:
    """A span of time in the unit that suits it, three digits."""
    for unit, size in (("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)):
        if nanoseconds >= size:
            value = nanoseconds / size
            digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
            return f"{value:.{digits}f} {unit}"
    return f"{nanoseconds} ns"


class _Glyphs:
    """The characters that a drawing is made of."""

    def __init__(self, *, ascii_only: bool) -> None:
        self.ascii = ascii_only
        self.tee, self.corner, self.pipe = ("|- ", "`- ", "|  ") if ascii_only else ("├─ ", "└─ ", "│  ")
        self.full, self.thin, self.empty = ("#", "|", ".") if ascii_only else ("█", "▏", " ")
        self.cross, self.dot, self.link = ("x", "*", "->") if ascii_only else ("✗", "•", "↪")


_ASCII: Final = _Glyphs(ascii_only=True)
_UNICODE: Final = _Glyphs(ascii_only=False)


def _heading(spans: Sequence[StoredSpan], tree: TraceTree) -> Text:
    trace_ids = {span.trace_id for span in spans}
    processes = {span.instance for span in spans}
    errors = sum(span.status == "error" for span in spans)
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append("trace ", style="dim")
    text.append(", ".join(sorted(trace_ids)), style="bold")
    text.append(f"  {_when(tree.start_ns)} UTC  {duration(tree.end_ns - tree.start_ns)}")
    if errors:
        text.append(f"  {errors} failed", style="bold red")
    text.append(f"  {_count(len(spans), 'span')}, {_count(len(processes), 'process', 'es')}", style="dim")
    return text


def _branches(last: tuple[bool, ...], glyphs: _Glyphs) -> tuple[str, str]:
    """What stands before the line of a span, and before the notes below it."""
    levels = last[1:]
    if len(levels) > MAX_DEPTH:
        levels = levels[-MAX_DEPTH:]
    if not levels:
        return "", ""
    above = "".join("   " if is_last else glyphs.pipe for is_last in levels[:-1])
    return above + (glyphs.corner if levels[-1] else glyphs.tee), above + ("   " if levels[-1] else glyphs.pipe)


def _bar(span: StoredSpan, tree: TraceTree, width: int, glyphs: _Glyphs) -> str:
    window = max(1, tree.end_ns - tree.start_ns)
    first = min(width - 1, (span.start_ns - tree.start_ns) * width // window)
    cells = min(width - first, round(span.duration_ns * width / window))
    return glyphs.empty * first + (glyphs.full * cells if cells > 0 else glyphs.thin)


def _attributes(attributes: Attributes, everything: bool) -> str:
    if everything:
        return "  ".join(f"{_clean(key, _MAX_NAME)}={_value(key, value)}" for key, value in sorted(attributes.items()))
    shown = ((label, key) for key, label in SHOWN_ATTRIBUTES.items() if key in attributes)
    return "  ".join(f"{label}={_value(key, attributes[key])}" for label, key in shown)


def _experts(attributes: Attributes) -> str:
    """A line of its own: beside the other attributes it would be cut. Empty: no experts were used."""
    top = attributes.get(names.EXPERT_TOP)
    if not isinstance(top, tuple):
        return ""
    tokens, used = attributes.get(names.EXPERT_TOKENS), attributes.get(names.EXPERT_DISTINCT)
    return _clean(
        f"experts: {used} in all layers used by {tokens} tokens, most: {', '.join(map(str, top))}", _MAX_VALUE
    )


def _value(key: str, value: AttributeValue) -> str:
    if isinstance(value, float) and key in IN_SECONDS:
        return duration(round(value * 1e9))
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple):
        return _clean(",".join(map(str, value)), _MAX_VALUE)
    return _clean(str(value), _MAX_VALUE)


def _link(link: SpanLink) -> str:
    why = ", ".join(_value(key, value) for key, value in sorted(link.attributes.items()))
    return f"linked to trace {link.trace_id}, span {link.span_id}" + (f" ({why})" if why else "")


def _count(number: int, thing: str, plural: str = "s") -> str:
    return f"{number} {thing}{'' if number == 1 else plural}"


def _when(nanoseconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(nanoseconds // 1_000_000_000))


def _clean(text: str, limit: int) -> str:
    visible = "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text[:limit]
    )
    return visible if len(text) <= limit else f"{visible[:-1]}…"
