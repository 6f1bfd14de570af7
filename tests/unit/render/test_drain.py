from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from deployments.render import drain as drain_module
from deployments.render.drain import drain


class Told:
    """Stands in for the command that asks Ray: what it was told, and how often it fails before it takes it."""

    def __init__(self, failures: int = 0) -> None:
        self.commands: list[list[str]] = []
        self._failures = failures

    def __call__(self, command: list[str], **_more: object) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        status = 1 if len(self.commands) <= self._failures else 0
        return subprocess.CompletedProcess(command, status, "", "no head" if status else "")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain_module, "POLL_S", 0.001)
    monkeypatch.setattr(drain_module, "RETRY_S", 0.001)


def told(monkeypatch: pytest.MonkeyPatch, failures: int = 0) -> Told:
    made = Told(failures)
    monkeypatch.setattr(subprocess, "run", made)
    return made


def test_it_waits_until_no_replica_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = told(monkeypatch)
    left: Iterator[int] = iter([2, 1, 0])
    assert drain("10.0.0.1:6379", "ab12", 30.0, lambda: next(left))
    (command,) = asked.commands
    assert command[3:] == [
        "drain-node", "--address", "10.0.0.1:6379", "--node-id", "ab12", "--reason", "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message", "the pod is being stopped", "--deadline-remaining-seconds", "30",
    ]  # fmt: skip


def test_it_gives_up_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch)
    assert not drain("10.0.0.1:6379", "ab12", 0.01, lambda: 1)


def test_a_head_that_is_away_is_asked_until_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = told(monkeypatch, failures=7)
    assert drain("10.0.0.1:6379", "ab12", 30.0, lambda: int(len(asked.commands) < 8))
    assert len(asked.commands) == 8


def test_what_runs_may_end_while_nobody_could_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, failures=1000)
    left: Iterator[int] = iter([2, 1, 0])
    assert drain("10.0.0.1:6379", "ab12", 30.0, lambda: next(left))


def test_a_pod_without_a_replica_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = told(monkeypatch)
    monkeypatch.setattr(drain_module, "replicas_here", lambda: 0)
    monkeypatch.setattr("sys.argv", ["drain", "--seconds", "5"])
    assert drain_module.main() == 0
    assert asked.commands == []
