import stat
from pathlib import Path

from deployments.head.mailbox import (
    ChangePhase,
    ChangeProgress,
    ChangeRequest,
    put_progress,
    put_request,
    read_progress,
    take_request,
    withdraw_request,
)

REQUEST = ChangeRequest("one", "{}", "/c.yaml", {"dense": "/models/dense", "far": None}, 60.0)


def test_a_request_is_taken_once(tmp_path: Path) -> None:
    assert take_request(tmp_path) is None
    put_request(tmp_path, REQUEST)
    assert [stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()] == [0o600]
    assert take_request(tmp_path) == REQUEST
    assert take_request(tmp_path) is None


def test_a_request_can_be_withdrawn_and_a_damaged_one_is_dropped(tmp_path: Path) -> None:
    put_request(tmp_path, REQUEST)
    (path,) = tmp_path.iterdir()
    withdraw_request(tmp_path)
    assert take_request(tmp_path) is None
    path.write_text("{")
    assert take_request(tmp_path) is None
    assert not path.exists()


def test_progress_is_that_of_one_change(tmp_path: Path) -> None:
    assert read_progress(tmp_path, "one") is None
    put_progress(tmp_path, ChangeProgress("one", ChangePhase.RUNNING, "dense: loading"))
    assert read_progress(tmp_path, "other") is None
    progress = read_progress(tmp_path, "one")
    assert progress is not None
    assert progress.message == "dense: loading"
