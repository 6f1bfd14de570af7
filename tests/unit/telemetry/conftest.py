from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deployments.telemetry.spans import StoredSpan

START = 1_800_000_000_000_000_000
MakeSpan = Callable[..., StoredSpan]


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    return tmp_path / "traces.sqlite"


@pytest.fixture
def make_span() -> MakeSpan:
    def make(
        number: int, parent: int | None = None, *, trace: int = 1, start_ms: float = 0, **more: object
    ) -> StoredSpan:
        duration_ms = float(str(more.pop("duration_ms", 10)))
        start_ns = START + round(start_ms * 1e6)
        fields: dict[str, object] = {
            "trace_id": f"{trace:032x}",
            "span_id": f"{number:016x}",
            "parent_id": None if parent is None else f"{parent:016x}",
            "name": f"span-{number}",
            "kind": "internal",
            "start_ns": start_ns,
            "end_ns": start_ns + round(duration_ms * 1e6),
            "status": "unset",
            "status_message": "",
            "process": "ingress",
            "instance": "instance-1",
        }
        return StoredSpan(**(fields | more))  # type: ignore[arg-type]

    return make
