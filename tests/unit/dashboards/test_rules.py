"""Recording rules and alerts, held against Prometheus's own tool and against themselves."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

PROMETHEUS = Path(__file__).parents[3] / "infra" / "prometheus"
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")


def groups(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((PROMETHEUS / "rules" / name).read_text(encoding="utf-8"))["groups"]
    return found


ALERTS = {rule["alert"]: rule for group in groups("alerts.yaml") for rule in group["rules"]}


def promtool(*arguments: str) -> str:
    """What the tool says. Fails if it finds a mistake, or a point that its own linter is against."""
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.integration
def test_the_scrape_config_and_the_rules_are_valid(tmp_path: Path) -> None:
    folder = tmp_path / "prometheus"
    shutil.copytree(PROMETHEUS, folder)
    (folder / "metrics.key").write_text("key")
    assert promtool("check", "config", "--lint-fatal", str(folder / "prometheus.yaml")).count("SUCCESS") >= 3


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_alerts_fire_when_they_should_and_only_then() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(PROMETHEUS / "tests" / "alerts.yaml"))


def test_every_alert_is_shown_to_fire_and_every_situation_names_all_that_fire() -> None:
    told = yaml.safe_load((PROMETHEUS / "tests" / "alerts.yaml").read_text(encoding="utf-8"))
    firing, quiet = set(), 0
    for test in told["tests"]:
        (question,) = test["promql_expr_test"]
        assert question["expr"] == 'count by (alertname) (ALERTS{alertstate="firing"})'
        names = {re.findall(r'alertname="(\w+)"', sample["labels"])[0] for sample in question["exp_samples"]}
        firing |= names
        quiet += not names
    assert firing == ALERTS.keys()
    assert quiet >= 15


def test_every_alert_says_how_urgent_it_is_and_what_to_do() -> None:
    for name, rule in ALERTS.items():
        assert rule["labels"] in ({"severity": "page"}, {"severity": "ticket"}), name
        notes = rule["annotations"]
        assert notes.keys() == {"summary", "description", "runbook"}
        assert notes["description"].endswith(".") and not notes["summary"].endswith(".")
        assert notes["runbook"] == f"docs/operations.md#{name.lower()}"
        assert name.startswith("Pointsman")


def test_error_ratios_differ_by_their_window_alone() -> None:
    rules = {rule["record"]: rule["expr"] for group in groups("recording.yaml") for rule in group["rules"]}
    found = {name: expr for name, expr in rules.items() if name.startswith("pointsman:request_errors")}
    assert list(found) == [f"pointsman:request_errors:ratio_rate{window}" for window in WINDOWS]
    assert len({expr.replace(f"[{window}]", "[]") for window, expr in zip(WINDOWS, found.values(), strict=True)}) == 1


def test_burn_rates_are_those_of_the_workbook() -> None:
    """Long window, short window of a twelfth, burn rate: chapter 5 of the Site Reliability Workbook, table 5-8."""
    burns = [
        (found[0], found[2], float(found[1]))
        for name in ("PointsmanErrorBudgetBurnsFast", "PointsmanErrorBudgetBurnsSlowly")
        for found in re.findall(
            r"ratio_rate(\w+) > ([\d.]+) \* 0\.001\s+and\s+pointsman:request_errors:ratio_rate(\w+) >",
            ALERTS[name]["expr"],
        )
    ]
    assert burns == [("1h", "5m", 14.4), ("6h", "30m", 6), ("1d", "2h", 3), ("3d", "6h", 1)]
