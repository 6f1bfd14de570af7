from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deployments.head.state import Phase, read_state
from deployments.processes import process_state, processes_of
from tests.unit.cli.conftest import ROOT

GONE = {"Z", "X", None}


def wait_for(condition, timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_up_says_when_it_is_ready_and_what_to_type_next(invoke, fake_head, config_file, state_dir, free_port):
    fake_head("ready")
    done = invoke("up", "--config", str(config_file))
    assert done.exit_code == 0, done.output
    assert f"http://127.0.0.1:{free_port}/v1" in done.stdout
    assert "Ready in" in done.stdout
    for step in ("pointsman chat", "pointsman trace --last", "pointsman status", "pointsman down", "OPENAI_BASE_URL="):
        assert step in done.stdout
    assert "large: ready after" in done.stderr
    state = read_state(state_dir)
    assert state.phase is Phase.READY
    assert len(processes_of(state.cluster_id)) == 1

    stopped = invoke("down", "--json")
    assert stopped.exit_code == 0
    assert json.loads(stopped.stdout)["was_running"] is True
    assert processes_of(state.cluster_id) == ()
    assert process_state(state.pid) in GONE
    assert read_state(state_dir) is None


def test_where_keys_are_asked_for_the_next_step_is_a_key(invoke, fake_head, config_file):
    fake_head("ready")
    config_file.write_text(config_file.read_text() + "keys: {required: true}\n")
    done = invoke("up", "--config", str(config_file))
    assert done.exit_code == 0, done.output
    assert "there is none in" in done.stderr
    assert "keys add NAME" in done.stdout
    assert "Bearer '$POINTSMAN_API_KEY" in done.stdout
    assert invoke("down").exit_code == 0


def test_up_twice_is_the_same_cluster(invoke, fake_head, config_file, tmp_path, state_dir):
    fake_head("ready")
    first = json.loads(invoke("up", "--config", str(config_file), "--json").stdout)
    again = invoke("up", "--config", str(config_file), "--json")
    assert again.exit_code == 0
    second = json.loads(again.stdout)
    assert (first["started"], second["started"]) == (True, False)
    assert first["pid"] == second["pid"]
    assert "Already running and ready" in invoke("up", "--config", str(config_file)).stdout

    other = tmp_path / "other.yaml"
    other.write_text(config_file.read_text().replace("strong", "strong, facts"))
    refused = invoke("up", "--config", str(other))
    assert refused.exit_code == 3
    assert "another cluster already runs" in refused.stderr
    assert read_state(state_dir).pid == first["pid"]
    assert invoke("down").exit_code == 0


def test_a_model_that_fails_is_named_and_the_others_serve(invoke, fake_head, config_file, state_dir):
    fake_head("degraded")
    done = invoke("up", "--config", str(config_file))
    assert done.exit_code == 0, done.output
    assert "model small failed: EngineStartError: no memory for the KV cache" in done.stderr
    assert "logs" in done.stderr
    assert "Ready in part" in done.stdout
    assert invoke("down").exit_code == 0


def test_when_no_model_serves_nothing_is_left(invoke, fake_head, config_file, state_dir):
    fake_head("all-failed")
    done = invoke("up", "--config", str(config_file))
    assert done.exit_code == 1
    assert "no model serves" in done.stderr
    assert "no memory for the KV cache" in done.stderr
    assert read_state(state_dir) is None


def test_a_head_that_dies_is_explained(invoke, fake_head, config_file, state_dir):
    fake_head("dies")
    done = invoke("up", "--config", str(config_file))
    assert done.exit_code == 1
    assert "RuntimeError: no room for Ray" in done.stderr
    assert "something that Ray printed" in done.stderr
    assert "head.out" in done.stderr
    status = invoke("status")
    assert status.exit_code == 3
    assert "no room for Ray" in status.stderr
    assert invoke("down").exit_code == 0
    assert read_state(state_dir) is None


def test_a_start_that_takes_too_long_is_stopped(invoke, fake_head, config_file, state_dir):
    fake_head("slow")
    done = invoke("up", "--config", str(config_file), "--timeout", "1")
    assert done.exit_code == 1
    assert "--timeout" in done.stderr
    assert read_state(state_dir) is None


def test_down_ends_a_head_that_is_deaf_and_its_children(invoke, fake_head, config_file, state_dir):
    fake_head("stubborn")
    assert invoke("up", "--config", str(config_file)).exit_code == 0
    state = read_state(state_dir)
    done = invoke("down", "--timeout", "0.3", "--json")
    assert done.exit_code == 0
    report = json.loads(done.stdout)
    assert (report["head_killed"], report["swept"]) == (True, 1)
    assert processes_of(state.cluster_id) == ()
    assert process_state(state.pid) in GONE
    assert read_state(state_dir) is None


def test_down_and_up_clean_up_after_a_head_that_was_killed(invoke, fake_head, config_file, state_dir):
    fake_head("ready")
    for clean in ("down", "up"):
        assert invoke("up", "--config", str(config_file)).exit_code == 0
        state = read_state(state_dir)
        os.kill(state.pid, signal.SIGKILL)
        wait_for(lambda pid=state.pid: process_state(pid) in GONE)
        assert len(processes_of(state.cluster_id)) == 1
        status = invoke("status")
        assert status.exit_code == 3
        assert "ended without cleaning up" in status.stderr
        done = invoke(clean, *(["--config", str(config_file)] if clean == "up" else []))
        assert done.exit_code == 0, done.output
        assert processes_of(state.cluster_id) == ()
    assert invoke("down").exit_code == 0


def test_down_without_a_cluster_is_fine(invoke):
    done = invoke("down")
    assert done.exit_code == 0
    assert "No cluster is running" in done.stdout
    assert json.loads(invoke("down", "--json").stdout)["was_running"] is False


def test_a_port_in_use_names_its_holder(invoke, fake_head, config_file, free_port, state_dir):
    fake_head("ready")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", free_port))
        holder.listen()
        done = invoke("up", "--config", str(config_file))
    assert done.exit_code == 3
    assert f"process {os.getpid()}" in done.stderr
    assert read_state(state_dir) is None


def test_mistakes_in_the_config_stop_everything(invoke, fake_head, tmp_path):
    fake_head("ready")
    bad = tmp_path / "bad.yaml"
    bad.write_text("models: {a: {kind: dense, roles: [strong]}}\ningress: {port: 0}\n")
    done = invoke("up", "--config", str(bad))
    assert done.exit_code == 2
    assert "ingress.port" in done.stderr
    assert "models.a.source" in done.stderr


def test_listening_beyond_loopback_needs_a_key(invoke, fake_head, config_file, tmp_path, state_dir):
    fake_head("ready")
    open_to_all = tmp_path / "open.yaml"
    open_to_all.write_text(config_file.read_text().replace("ingress: {", "ingress: {host: 0.0.0.0, "))
    done = invoke("up", "--config", str(open_to_all))
    assert done.exit_code == 3
    assert "keys add" in done.stderr
    assert read_state(state_dir) is None


class Terminal:
    """`pointsman up` in a process of its own, so that it can be interrupted."""

    def __init__(self, state_dir: Path, *arguments: str) -> None:
        self.state_dir = state_dir
        program = (
            "from deployments.cli import head_process, place, main;"
            "place.HEAD_MODULE = head_process.HEAD_MODULE = 'tests.unit.cli.fake_head'; raise SystemExit(main())"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "up", "--state-dir", str(state_dir), *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def when(self, phase: Phase, models: Phase) -> str:
        def reached() -> bool:
            state = read_state(self.state_dir)
            return state is not None and state.phase is phase and {m.phase for m in state.models.values()} == {models}

        wait_for(reached)
        return read_state(self.state_dir).cluster_id

    def end(self, number: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=20)
        return self.process.returncode, output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_start_leaves_nothing(fake_head, config_file, state_dir, number):
    fake_head("slow")
    terminal = Terminal(state_dir, "--config", str(config_file))
    cluster_id = terminal.when(Phase.STARTING, Phase.STARTING)
    wait_for(lambda: processes_of(cluster_id))
    status, output = terminal.end(number)
    assert status == 130, output
    assert processes_of(cluster_id) == ()
    assert read_state(state_dir) is None


def test_in_the_foreground_ctrl_c_brings_everything_down(fake_head, config_file, state_dir):
    fake_head("ready")
    terminal = Terminal(state_dir, "--config", str(config_file), "--foreground")
    cluster_id = terminal.when(Phase.READY, Phase.READY)
    time.sleep(0.5)
    status, output = terminal.end(signal.SIGINT)
    assert status == 130, output
    assert "Ready in" in output
    assert "nothing of it is left" in output
    assert processes_of(cluster_id) == ()


def test_in_the_foreground_a_killed_command_takes_its_cluster_along(fake_head, config_file, state_dir):
    fake_head("ready")
    terminal = Terminal(state_dir, "--config", str(config_file), "--foreground")
    cluster_id = terminal.when(Phase.READY, Phase.READY)
    terminal.process.kill()
    terminal.process.communicate(timeout=20)
    wait_for(lambda: read_state(state_dir) is None and not processes_of(cluster_id))


def no_processes_of(state_dir: Path) -> bool:
    state = read_state(state_dir)
    return state is None or (processes_of(state.cluster_id) == () and process_state(state.pid) in GONE)


def test_a_start_that_breaks_in_an_unforeseen_way_leaves_nothing(
    invoke, fake_head, config_file, state_dir, monkeypatch
):
    fake_head("ready")

    def broken(*_arguments: object) -> None:
        wait_for(lambda: read_state(state_dir) is not None)
        raise RuntimeError("a bug")

    monkeypatch.setattr("deployments.cli.launch.follow", broken)
    done = invoke("up", "--config", str(config_file))
    assert done.exit_code == 1
    assert "a bug" in done.stderr
    assert no_processes_of(state_dir)


def test_a_head_that_cannot_be_noted_down_does_not_run_on(invoke, fake_head, config_file, state_dir):
    fake_head("ready")
    # What a full disk does to a small file, on any disk.
    (state_dir / "launch.json").symlink_to("/dev/full")
    done = invoke("up", "--config", str(config_file))
    assert done.exit_code == 1
    assert "the disk is full" in done.stderr
    assert "Free some space" in done.stderr
    children = subprocess.run(
        ["ps", "-o", "args=", "--ppid", str(os.getpid())], check=False, capture_output=True, text=True
    )
    assert "fake_head" not in children.stdout
    assert no_processes_of(state_dir)


@pytest.mark.parametrize("command", [("up",), ("serve", "embedded:encoder-like", "--port", "8123")])
def test_a_state_directory_that_cannot_be_is_named(invoke, fake_head, config_file, tmp_path, command):
    fake_head("ready")
    taken = tmp_path / "taken"
    taken.touch()
    more = ("--config", str(config_file)) if command == ("up",) else ()
    done = invoke(*command, *more, "--state-dir", str(taken))
    assert done.exit_code == 1
    assert f"the state directory {taken} cannot be made" in done.stderr
    assert "--state-dir" in done.stderr


def test_serve_knows_of_a_port_in_use_before_it_gets_the_model(invoke, fake_head, free_port, monkeypatch):
    fake_head("ready")
    monkeypatch.setattr("deployments.cli.launch.prepare", lambda *_sources: pytest.fail("it got the model first"))
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", free_port))
        holder.listen()
        done = invoke("serve", "embedded:dense", "--port", str(free_port))
    assert done.exit_code == 3
    assert f"process {os.getpid()}" in done.stderr


def test_serve_knows_of_options_that_do_not_go_together_before_it_gets_the_model(invoke, fake_head, monkeypatch):
    fake_head("ready")
    monkeypatch.setattr("deployments.cli.launch.prepare", lambda *_sources: pytest.fail("it got the model first"))
    done = invoke("serve", "embedded:dense", "--kv-window", "4096", "--max-model-len", "2048")
    assert done.exit_code == 2
    assert "kv_window_tokens" in done.stderr


@pytest.mark.parametrize(("value", "status", "words"), [("span_only", 0, "traces record what"), ("yes", 2, "CONTENT")])
def test_recording_what_is_said_is_no_secret(invoke, fake_head, config_file, monkeypatch, value, status, words):
    fake_head("ready")
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", value)
    done = invoke("up", "--config", str(config_file))
    assert done.exit_code == status
    assert words in done.stderr
    assert invoke("down").exit_code == 0
