"""Figures for people: tables on the terminal. Figures for scripts are JSON, made where they are measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from loadtests.records import RunSummary


def console() -> Console:
    """Where progress and tables go: standard error, so that `--json` output stays clean."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def write_json(value: object) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def milliseconds(seconds: float | None) -> str:
    """A time as text, `-` where it was not measured."""
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"


def percent(share: float | None) -> str:
    """A share as text, `-` where it was not measured."""
    return "-" if share is None else f"{share * 100:.1f} %"


def run_table(title: str, runs: Sequence[tuple[str, RunSummary]]) -> Table:
    """One column per run, one row per measure."""
    table = Table(title=title, title_justify="left")
    table.add_column("measure")
    for name, _ in runs:
        table.add_column(name, justify="right")
    summaries = [summary for _, summary in runs]
    rows: list[tuple[str, list[str]]] = [
        ("answered by", [", ".join(s.answered_by) or "-" for s in summaries]),
        ("streams", [str(s.streams) for s in summaries]),
        ("requests (succeeded)", [f"{s.requests} ({s.succeeded})" for s in summaries]),
        ("tokens/s", [f"{s.tokens_per_s:.1f}" for s in summaries]),
        ("completion tokens", [str(s.completion_tokens) for s in summaries]),
        ("TTFT p50", [milliseconds(s.ttft.p50) for s in summaries]),
        ("TTFT p95", [milliseconds(s.ttft.p95) for s in summaries]),
        ("ITL p50", [milliseconds(s.itl.p50) for s in summaries]),
        ("ITL p95", [milliseconds(s.itl.p95) for s in summaries]),
        ("gap between arrivals p50", [milliseconds(s.gap.p50) for s in summaries]),
        ("arrivals of at most 2 tokens", [percent(s.few_token_share) for s in summaries]),
        ("answers with counted tokens", [percent(s.exact_share) for s in summaries]),
        ("client CPU", [f"{s.client_cpu_s:.2f} s of {s.window_s:.2f} s" for s in summaries]),
        ("errors", [", ".join(f"{kind}: {n}" for kind, n in s.errors.items()) or "none" for s in summaries]),
    ]
    for name, cells in rows:
        table.add_row(name, *cells)
    return table
