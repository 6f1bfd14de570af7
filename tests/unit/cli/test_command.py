"""The command as a whole: help, start-up, errors, output."""

from __future__ import annotations

import errno
import io
import os
import statistics
import subprocess
import sys

import pytest
from rich.console import Console

from deployments.cli import output, place
from deployments.cli.follow import cause
from deployments.cli.log_tails import last_errors, model_log
from deployments.cli.place import Place, find_place, program
from deployments.cli.progress import Waiting
from deployments.head.state import ClusterState, Phase, write_state
from tests.unit.cli.conftest import ROOT

HEAVY = ("ray", "torch", "vllm", "transformers", "httpx", "openai")


def test_without_arguments_it_lists_commands_by_task(invoke):
    done = invoke()
    assert done.exit_code == 0
    for words in ("Run a cluster", "Ask it", "Look inside", "Set up", "up", "chat", "trace", "keys"):
        assert words in done.stdout


def test_a_command_that_is_none_suggests_one(invoke):
    done = invoke("statsu")
    assert done.exit_code == 2
    assert "status" in done.stderr


def test_version(invoke):
    assert invoke("--version").stdout.startswith("pointsman 0.")


def test_nothing_heavy_is_imported():
    """Nor in the modules that only run once a command does."""
    program = (
        "import pkgutil, sys, importlib, deployments.cli as cli;"
        "names = [m.name for m in pkgutil.walk_packages(cli.__path__, 'deployments.cli.') if '__main__' not in m.name];"
        "[importlib.import_module(name) for name in names];"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_starting_computes_little_more_than_its_libraries_take_to_import():
    def seconds(*arguments: str) -> float:
        before = os.times()
        subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    libraries = "import typer.rich_utils, rich.markdown, rich.traceback, rich.table"
    # Against the machine as it is now, in turns: what disturbs one of them disturbs the other.
    pairs = [(seconds("-m", "deployments.cli", "--help"), seconds("-c", libraries)) for _ in range(7)]
    assert statistics.median(command / bare for command, bare in pairs) < 2.3, pairs


def test_no_traceback_unless_asked_for(invoke, monkeypatch):
    def broken(*_arguments: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("deployments.cli.place.find_place", broken)
    done = invoke("status")
    assert done.exit_code == 1
    assert "RuntimeError: a bug" in done.stderr
    assert "Traceback" not in done.output
    assert "POINTSMAN_DEBUG=1" in done.stderr
    monkeypatch.setenv("POINTSMAN_DEBUG", "1")
    assert isinstance(invoke("status").exception, RuntimeError)


def test_output_that_nobody_reads_to_the_end_is_no_error():
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m deployments.cli config schema | head -1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "{\n"
    assert done.stderr == ""


def test_another_process_with_the_heads_number_is_no_head(state_dir):
    state = ClusterState("c", os.getpid(), "x.yaml", "127.0.0.1", 1, Phase.READY, 0.0)
    write_state(state_dir, state)
    assert state.alive
    assert not place.head_runs(state)
    assert Place(state_dir, named=True).state is None


def test_commands_are_suggested_for_the_place_that_was_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pointsman"])
    assert find_place(tmp_path).command("down").endswith(f"down --state-dir {tmp_path}")
    assert "--state-dir" not in find_place(None).command("down")
    monkeypatch.setenv("POINTSMAN_STATE_DIR", str(tmp_path))
    assert find_place(None) == Place(tmp_path, named=False)


def test_the_program_is_named_as_it_can_be_typed(monkeypatch, tmp_path):
    inside = tmp_path / ".venv" / "bin" / "pointsman"
    inside.parent.mkdir(parents=True)
    inside.write_text("#!/bin/sh\n")
    inside.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(inside)])
    monkeypatch.setenv("PATH", "/nowhere")
    assert program() == ".venv/bin/pointsman"
    monkeypatch.setenv("PATH", str(inside.parent))
    assert program() == "pointsman"
    monkeypatch.setattr(sys, "argv", ["-c"])
    assert program() == "pointsman"


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (260 * 2**20, "260 MiB"), (6.7 * 2**30, "6.7 GiB")],
)
def test_sizes(count, shown):
    assert output.size(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.1234, "0.12 s"),
        (0.999, "1.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (119.4, "119 s"),
        (185, "3 min 5 s"),
        (7800, "2 h 10 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations(seconds, shown):
    assert output.duration(seconds) == shown


def test_foreign_text_cannot_steer_the_terminal():
    assert output.visible("a\x1b[31mb\r\n\tü\x07") == "a�[31mb�\n\tü�"


def test_the_cause_of_a_failure_is_its_last_telling_line():
    message = "The deployment failed\nTraceback (most recent call last):\n  File x\nValueError: too large\n  during y"
    assert cause(message) == "ValueError: too large"
    assert cause("it is late") == "it is late"
    assert cause("") == "no reason given"


def test_tails_of_logs(state_dir):
    logs = state_dir / "logs"
    logs.mkdir()
    assert model_log(state_dir, "dense") is None
    (logs / "replica-dense-other-7.jsonl").write_text("{}\n")
    path = logs / "replica-dense-12.jsonl"
    path.write_text(
        '{"level":"info","message":"fine"}\nnot json\n'
        '{"level":"error","message":"it broke","exception":["ValueError","  at x.py:3"]}\n'
    )
    assert model_log(state_dir, "dense") == path
    assert last_errors(path, 5) == ["it broke", "  ValueError", "    at x.py:3"]
    assert last_errors(path, 1) == ["    at x.py:3"]
    assert last_errors(logs / "none.jsonl", 5) == []


def test_progress_on_a_terminal(monkeypatch):
    shown = Console(force_terminal=True, width=80, file=io.StringIO(), record=True)
    monkeypatch.setattr(output, "stderr", lambda: shown)
    with Waiting("Starting") as waiting:
        waiting.part("dense", "loading")
        waiting.part("mini", "fitting", 0.5)
        waiting.done("sparse", "failed: no memory", good=False)
        shown.print(waiting)
    text = shown.export_text()
    for words in ("Starting", "dense", "loading", "50%", "fitting", "failed: no memory"):
        assert words in text


def test_progress_without_a_terminal_is_a_line_per_event(capsys):
    with Waiting("Starting") as waiting:
        for _ in range(3):
            waiting.part("dense", "loading")
            waiting.done("mini", "ready")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Starting"
    assert [line.partition("s  ")[2] for line in lines[1:]] == ["dense: loading", "mini: ready"]


def test_commands_to_type_next_can_be_typed(tmp_path):
    assert Place(tmp_path / "my state", named=True).command("down").endswith(f"--state-dir '{tmp_path}/my state'")


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "the disk is full (/there/file)"), (errno.EACCES, "may not do that (/there/file)")],
)
def test_a_disk_that_fails_anywhere_is_no_bug(invoke, monkeypatch, number, words):
    def broken(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number), "/there/file")

    monkeypatch.setattr("deployments.cli.place.find_place", broken)
    done = invoke("status")
    assert done.exit_code == 1
    assert words in done.stderr
    assert "should not happen" not in done.stderr
