from pathlib import Path

from cluster.telemetry.metric_document import render_metrics
from cluster.telemetry.metric_table import all_metrics

PAGE = Path(__file__).parents[4] / "docs" / "metrics.md"
WRITE = "python -c 'from cluster.telemetry.metric_document import render_metrics as r; print(r(), end=\"\")' > docs/metrics.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == render_metrics(), f"make it anew: {WRITE}"


def test_every_metric_is_one_row_of_as_many_cells() -> None:
    rows = [line for line in render_metrics().splitlines() if line.startswith("| `")]
    assert len(rows) == len(all_metrics())
    assert {row.count("|") for row in rows} == {6}
