"""Orders the spans of a trace into the lines of a tree, whatever state they are in.

Spans may be missing, their clocks may differ, they may name each other as parents, and there may be thousands of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from deployments.telemetry.spans import StoredSpan

MAX_DEPTH: Final = 24
_SKEW_NS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class TreeLine:
    """One span at its place in the tree."""

    span: StoredSpan
    last: tuple[bool, ...]
    """For each level below the root: whether the span there is the last of its siblings."""
    orphan: bool
    """It names a parent that is not among the spans."""
    skew_ns: int
    """Nanoseconds that it begins before its parent in another process, 0 if it does not: the clocks differ."""


@dataclass(frozen=True, slots=True)
class FoldedLine:
    """Siblings that are not shown."""

    spans: int
    errors: int
    total_ns: int
    last: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class TraceTree:
    """All lines of a trace, top to bottom, within the window of time that its spans cover."""

    lines: tuple[TreeLine | FoldedLine, ...]
    start_ns: int
    end_ns: int


def build_tree(spans: Iterable[StoredSpan], max_lines: int) -> TraceTree:
    """The tree with at most about `max_lines` lines; children by start time, the longest and the failed kept first.

    Raises `ValueError` for no spans.
    """
    unique = {span.span_id: span for span in spans}
    if not unique:
        raise ValueError("a trace without spans has no tree")
    children: defaultdict[str | None, list[StoredSpan]] = defaultdict(list)
    for span in unique.values():
        known = span.parent_id is not None and span.parent_id in unique and span.parent_id != span.span_id
        children[span.parent_id if known else None].append(span)
    _break_circles(unique, children)
    return TraceTree(
        lines=tuple(_walk(children, unique, max_lines)),
        start_ns=min(span.start_ns for span in unique.values()),
        end_ns=max(max(span.end_ns, span.start_ns) for span in unique.values()),
    )


def _break_circles(unique: dict[str, StoredSpan], children: dict[str | None, list[StoredSpan]]) -> None:
    """Make the earliest span of each circle of parents a root, so that every span is reached exactly once."""
    reached = _reach(children, [span.span_id for span in children[None]])
    for span in sorted(unique.values(), key=_order):
        if span.span_id not in reached:
            children[span.parent_id].remove(span)
            children[None].append(span)
            reached |= _reach(children, [span.span_id])


def _reach(children: dict[str | None, list[StoredSpan]], start: list[str]) -> set[str]:
    reached = set(start)
    waiting = list(start)
    while waiting:
        for span in children.get(waiting.pop(), ()):
            if span.span_id not in reached:
                reached.add(span.span_id)
                waiting.append(span.span_id)
    return reached


def _walk(
    children: dict[str | None, list[StoredSpan]], unique: dict[str, StoredSpan], max_lines: int
) -> list[TreeLine | FoldedLine]:
    lines: list[TreeLine | FoldedLine] = []
    left = max(1, max_lines)
    # Depth first with a stack of its own: a chain of thousands of spans must not end in a recursion error.
    stack: list[TreeLine | FoldedLine] = list(reversed(_level(children[None], (), unique, left)))
    while stack:
        line = stack.pop()
        lines.append(line)
        left -= 1
        if isinstance(line, TreeLine):
            below = children.get(line.span.span_id, [])
            room = max(0, left - len(stack))
            if below:
                stack.extend(reversed(_level(below, line.last, unique, room)))
    return lines


def _level(
    siblings: Sequence[StoredSpan], above: tuple[bool, ...], unique: dict[str, StoredSpan], room: int
) -> list[TreeLine | FoldedLine]:
    """Siblings in order of time. When they do not fit, half the room goes to them and the rest to their children."""
    shown = list(siblings)
    if len(shown) > room:
        keep = max(1, room // 2) if room else 0
        shown = sorted(shown, key=lambda span: (span.status != "error", -span.duration_ns))[:keep]
    kept = {span.span_id for span in shown}
    folded = [span for span in siblings if span.span_id not in kept]
    shown.sort(key=_order)
    level: list[TreeLine | FoldedLine] = []
    for index, span in enumerate(shown):
        last = (*above, index == len(shown) - 1 and not folded)
        parent = unique.get(span.parent_id) if span.parent_id and above else None
        level.append(
            TreeLine(span, last, span.parent_id is not None and span.parent_id not in unique, _skew(span, parent))
        )
    if folded:
        level.append(
            FoldedLine(
                spans=len(folded),
                errors=sum(span.status == "error" for span in folded),
                total_ns=sum(span.duration_ns for span in folded),
                last=(*above, True),
            )
        )
    return level


def _skew(span: StoredSpan, parent: StoredSpan | None) -> int:
    if parent is None or parent.instance == span.instance:
        return 0
    early = parent.start_ns - span.start_ns
    return early if early > _SKEW_NS else 0


def _order(span: StoredSpan) -> tuple[int, int, str]:
    return span.start_ns, -span.end_ns, span.span_id
