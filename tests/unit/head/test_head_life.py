"""What the head process survives while it watches, and what it still does on its way down."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray import serve
from ray.serve.schema import ApplicationStatus

from cluster.config.in_force import in_force
from cluster.config.load import parse_config
from deployments.cli.config_files import default_config
from deployments.head import head as head_module
from deployments.head.change import ChangeError, Running
from deployments.head.head import Head, HeadOptions
from deployments.head.mailbox import ChangePhase, ChangeRequest, read_progress
from deployments.head.state import Phase, make_state_directory, read_config_in_force, read_state


class Step:
    """Counts its calls and fails at each."""

    def __init__(self):
        self.calls = 0

    def __call__(self, *_arguments):
        self.calls += 1
        raise RuntimeError("broken")


class Parts:
    """In the place of the Ray cluster and of the guard."""

    def __init__(self):
        self.stop = Step()
        self.close = Step()
        self.remove_temporary = Step()


@pytest.fixture
def head(tmp_path):
    config = parse_config(default_config().read_text(), "the default")
    make_state_directory(tmp_path)
    return Head(HeadOptions("c" * 32, config, tmp_path / "c.yaml", tmp_path, {}))


def full_disk(*_arguments):
    raise OSError(28, "No space left on device")


def test_a_full_disk_does_not_end_the_head(head, tmp_path, monkeypatch):
    head._write(Phase.READY, "")
    monkeypatch.setattr(head_module, "write_state", full_disk)
    head._write(Phase.DEGRADED, "")
    assert read_state(tmp_path).phase is Phase.READY


def test_serve_may_be_silent_for_a_while(head, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(head_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(serve, "status", Step())
    head._look()
    now[0] += head_module.BLIND_S - 1
    head._look()
    now[0] += 1
    with pytest.raises(RuntimeError, match="broken"):
        head._look()


@pytest.mark.parametrize(("told", "shown"), [("Error: no such file", "Error: no such file"), ("", "It failed.")])
def test_the_reason_of_a_failed_model_is_the_cause(head, monkeypatch, told, shown):
    """Serve says of the application only that a deployment failed, and of the deployment why."""
    deployment = SimpleNamespace(message=told)
    failed = SimpleNamespace(
        status=ApplicationStatus.DEPLOY_FAILED, message="It failed.", deployments={"ModelReplica": deployment}
    )
    name = head_module.model_application_name("dense")
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications={name: failed}))
    head._observe()
    assert head._models["dense"].phase is Phase.FAILED
    assert head._models["dense"].message == shown


def test_a_first_model_that_hangs_keeps_the_others_waiting_for_a_minute_only(head, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(head_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(head_module, "ingress_application", lambda *_: "ingress")
    head._model_paths.update(dict.fromkeys(head._config.models))
    started = []
    monkeypatch.setattr(head_module, "run_application", lambda name, _application: started.append((name, now[0])))
    monkeypatch.setattr(head_module, "run_model", lambda *told: started.append((told[-1], now[0])))
    monkeypatch.setattr(head, "_look", lambda: None)

    def wait(seconds):
        now[0] += seconds
        return False

    monkeypatch.setattr(head._stop, "wait", wait)
    head._deploy()
    names = [name for name, _ in started]
    assert names[1] == head_module.model_application_name("dense")
    assert len(names) == len(head._config.models) + 1
    times = [at for _, at in started]
    assert times[:2] == [100.0, 100.0]
    assert times[2:] == pytest.approx([100.0 + head_module.FIRST_ALONE_S] * (len(times) - 2), abs=1.0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_every_step_of_the_way_down_is_taken_though_others_fail(head, tmp_path, monkeypatch):
    head._write(Phase.READY, "")
    sweep = Step()
    monkeypatch.setattr(head_module, "processes_of", sweep)
    parts = Parts()
    head._shut_down(parts, parts)
    assert (parts.stop.calls, parts.close.calls, sweep.calls, parts.remove_temporary.calls) == (1, 1, 1, 1)
    assert read_state(tmp_path) is None


class ChangerThat:
    """Changes to what it is asked for, or fails."""

    def __init__(self, failure=None):
        self.failure = failure

    def change(self, running, new, model_paths, timeout_s, say):
        say("dense: loading")
        if self.failure is not None:
            raise self.failure
        return Running(new, {name: f"model-{name}~2" for name in new.models})


def request_of(head, tmp_path):
    new = head._config.model_copy(update={"routing": head._config.routing.model_copy(update={"switch_margin": 0.5})})
    return ChangeRequest("one", json.dumps(in_force(new)), str(tmp_path / "next.yaml"), {"dense": "/other"}, 5.0)


def test_a_change_is_in_force_once_it_is_done(head, tmp_path, monkeypatch):
    monkeypatch.setattr(head, "_look", lambda: None)
    head._changer = ChangerThat()
    head._change(request_of(head, tmp_path))
    assert head._config.routing.switch_margin == 0.5
    assert head._applications["dense"] == "model-dense~2"
    assert head._model_paths["dense"] == Path("/other")
    assert read_config_in_force(tmp_path) == head._config
    assert read_progress(tmp_path, "one").phase is ChangePhase.DONE


@pytest.mark.parametrize("failure", [ChangeError("dense: no room"), RuntimeError("secret words")])
def test_a_change_that_fails_leaves_everything_as_it_was(head, tmp_path, monkeypatch, failure):
    monkeypatch.setattr(head, "_look", lambda: None)
    before = head._config, dict(head._applications), dict(head._model_paths), head._config_path
    head._changer = ChangerThat(failure)
    head._change(request_of(head, tmp_path))
    assert (head._config, dict(head._applications), dict(head._model_paths), head._config_path) == before
    progress = read_progress(tmp_path, "one")
    assert progress.phase is ChangePhase.FAILED
    assert ("no room" in progress.message) is isinstance(failure, ChangeError)
    assert "secret" not in progress.message
