"""The timeline of precision changes on the command line."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from cluster.config.records import RecordsConfig
from deployments.cli.commands.precision_timeline import timeline
from deployments.cli.groups import Command, Commands
from deployments.cli.precision_views import show_timeline
from deployments.paths import records_path
from deployments.records.batch import Batch, Loss
from deployments.records.store import RecordStore
from deployments.records.target import target_of
from tests.unit.records.made import change

ONE, TWO = "default#dense#xabc123", "default#dense#xdef456"


@pytest.fixture
def run(state_dir, monkeypatch):
    """The command by itself: its group is made elsewhere."""
    monkeypatch.setenv("POINTSMAN_STATE_DIR", str(state_dir))
    app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)
    app.callback()(lambda: None)
    app.command("timeline", cls=Command)(timeline)
    return lambda *arguments: CliRunner().invoke(app, ["timeline", *arguments])


@pytest.fixture
def stored(state_dir) -> float:
    now = time.time()
    sampling = {"level_name": "conservative_sampling", "kv_after": "bfloat16", "pause_s": 0.0, "preempted": 0}
    none = {"tokens": 0, "blocks_before": 22, "blocks_after": 22}
    changes = (
        change(id="a", at=now - 7200, replica=ONE, level_before=0, level=1, **sampling, **none),
        change(id="b", at=now - 300, replica=ONE),
        change(
            id="c",
            at=now - 200,
            replica=TWO,
            model="mini",
            level_before=0,
            level=0,
            level_name="normal",
            error="the engine is \x1b[31mbusy",
            **{"kv_after": "bfloat16", "pause_s": 0.0, "preempted": 0} | none,
        ),
        change(
            id="d",
            at=now - 100,
            replica=ONE,
            level_before=2,
            level=1,
            level_name="conservative_sampling",
            cause="calm",
            reason="calm for 30 s",
            kv_before="fp8",
            kv_after="bfloat16",
            blocks_before=45,
            blocks_after=22,
        ),
    )
    store = RecordStore(target_of(RecordsConfig(), state_dir), "ingress-1")
    store.write(Batch(changes=changes, losses=(Loss("l" * 32, now, "queue_full", 7),)))
    store.close()
    return now


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_the_oldest_comes_first_with_levels_by_name_and_what_it_cost(run, stored):
    done = run()
    assert done.exit_code == 0, done.output
    head, *lines = done.stdout.splitlines()
    assert cells(head) == [
        *("time", "model", "replica", "level", "KV", "pause ms", "preempted", "recomputed", "blocks", "cause", "reason")
    ]
    first, second, failed, last = map(cells, lines)
    reason = "93% of its KV cache is in use, 90% is pressure"
    assert first[1:] == ["dense", "abc123", "0 normal → 1 conservative_sampling", "22", "kv_usage", reason]
    assert second[1:] == [
        *("dense", "abc123", "1 conservative_sampling → 2 fp8_kv", "bfloat16 → fp8", "250", "3", "410", "22 → 45"),
        *("kv_usage", reason),
    ]
    replacement = "\N{REPLACEMENT CHARACTER}"
    assert failed[1:] == [
        *("mini", "def456", "0 normal", "22", "kv_usage"),
        f"{reason}; failed: the engine is {replacement}[31mbusy",
    ]
    assert last[3:] == [
        *("2 fp8_kv → 1 conservative_sampling", "fp8 → bfloat16", "250", "3", "410", "45 → 22", "calm", "calm for 30 s")
    ]
    assert "7 (queue_full)" in done.stderr


def test_options_choose(run, stored):
    def ids(*options: str) -> list[str]:
        done = run("--json", *options)
        assert done.exit_code == 0, done.output
        return [row["id"] for row in json.loads(done.stdout)["changes"]]

    assert ids() == ["a", "b", "c", "d"]
    assert ids("-m", "mini") == ["c"]
    assert ids("--since", "10m") == ["b", "c", "d"]
    assert ids("--limit", "2") == ["c", "d"]
    assert json.loads(run("--json").stdout)["lost"] == {"queue_full": 7}
    assert run("--since", "yesterday").exit_code == 2


def test_a_level_whose_name_nobody_told_is_shown_by_its_number(run, stored):
    line = next(line for line in run("--since", "150s").stdout.splitlines() if "calm" in line)
    assert cells(line)[3] == "2 → 1 conservative_sampling"


def test_failed_ones_are_red(monkeypatch, capsys):
    monkeypatch.setattr("deployments.cli.output.stdout", lambda: Console(force_terminal=True, width=400))
    show_timeline([asdict(change(at=2.0, error="no memory for it")), asdict(change(at=1.0))])
    _, well, failed = capsys.readouterr().out.splitlines()
    assert "\x1b[31m" in failed and "failed: no memory for it" in failed
    assert "\x1b[31m" not in well


def test_where_nothing_has_changed(run, state_dir):
    assert "no such changes" in run().stdout
    assert json.loads(run("--json").stdout) == {"changes": [], "lost": {}}
    assert not records_path(state_dir).exists()


def test_where_records_are_off(run, stored, config_file):
    config_file.write_text(config_file.read_text() + "records: {enabled: false}\n")
    done = run("--config", str(config_file))
    assert done.exit_code == 2
    assert f"records are disabled (records.enabled) in {config_file}" in done.stderr
    assert "Set records.enabled to true" in done.stderr
    assert "down" in done.stderr and f"up --config {config_file}" in done.stderr


def test_a_file_that_is_no_database(run, state_dir):
    records_path(state_dir).write_bytes(b"no database " * 1000)
    done = run()
    assert done.exit_code == 1
    assert "records.sqlite" in done.stderr and "SQLITE_NOTADB" in done.stderr
