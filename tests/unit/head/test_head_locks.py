"""Locks and notes of head processes: who holds a directory or a port, and what a damaged state file says."""

from __future__ import annotations

import os

import pytest

from deployments.cli.errors import CliError, ExitCode
from deployments.cli.place import Place
from deployments.cli.teardown import stop_cluster
from deployments.head.locks import lock_holder
from deployments.head.ports import PortInUseError, hold_port
from deployments.head.state import (
    AlreadyRunningError,
    ClusterState,
    DamagedStateError,
    Phase,
    load_state,
    lock_state,
    read_state,
    write_state,
)


@pytest.fixture(autouse=True)
def runtime_dir(tmp_path, monkeypatch):
    path = tmp_path / "run"
    path.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    return path


def test_a_port_is_held_by_one_cluster_which_the_refusal_names(tmp_path, runtime_dir):
    with hold_port(8000, tmp_path / "first"):
        with pytest.raises(PortInUseError, match=f"process {os.getpid()}, state directory .*first"):
            hold_port(8000, tmp_path / "second")
        hold_port(8001, tmp_path / "second").close()
    hold_port(8000, tmp_path / "second").close()
    assert (runtime_dir / f"pointsman-{os.getuid()}").stat().st_mode & 0o777 == 0o700


def test_a_lock_directory_that_others_may_use_is_refused(tmp_path, runtime_dir):
    directory = runtime_dir / f"pointsman-{os.getuid()}"
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(PortInUseError, match="chmod 700"):
        hold_port(8000, tmp_path)


def test_a_state_directory_is_held_once_and_says_by_whom(tmp_path):
    with lock_state(tmp_path):
        assert lock_holder(tmp_path / "head.lock") == str(os.getpid())
        with pytest.raises(AlreadyRunningError, match=f"process {os.getpid()}.*down --state-dir {tmp_path}`"):
            lock_state(tmp_path)
    assert lock_holder(tmp_path / "head.lock") is None


def test_a_missing_state_file_is_no_cluster_and_a_damaged_one_is_an_error(tmp_path):
    assert load_state(tmp_path) is None
    for damaged in (b"", b"{", b'{"pid": 1}', b"\xff\xfe"):
        (tmp_path / "cluster.json").write_bytes(damaged)
        assert read_state(tmp_path) is None
        with pytest.raises(DamagedStateError) as raised:
            load_state(tmp_path)
        assert not raised.value.held


def test_commands_say_that_the_file_is_damaged_and_which_head_holds_it(tmp_path):
    (tmp_path / "cluster.json").write_bytes(b"{")
    place = Place(tmp_path, named=True)
    with pytest.raises(CliError) as raised:
        _ = place.state
    assert "no head process runs" in raised.value.message
    assert raised.value.code is ExitCode.FAILED
    with lock_state(tmp_path), pytest.raises(CliError, match=f"its head is process {os.getpid()}"):
        _ = place.noted


def state_with(directory):
    # Beyond any process id of Linux.
    return ClusterState("c" * 32, 2**30, "c.yaml", "127.0.0.1", 8000, Phase.READY, 0.0, ray_temp_dir=str(directory))


def test_stopping_what_a_killed_head_left_removes_its_temporary_directory(tmp_path):
    left = tmp_path / "pointsman-abc"
    (left / "session").mkdir(parents=True)
    write_state(tmp_path, state_with(left))
    stop_cluster(tmp_path, 2**30, "c" * 32, 1.0, lambda _doing: None, head_runs=False)
    assert not left.exists()
    assert load_state(tmp_path) is None


def test_a_directory_that_no_head_made_is_not_removed(tmp_path):
    other = tmp_path / "photos"
    other.mkdir()
    write_state(tmp_path, state_with(other))
    stop_cluster(tmp_path, 2**30, "c" * 32, 1.0, lambda _doing: None, head_runs=False)
    assert other.exists()
