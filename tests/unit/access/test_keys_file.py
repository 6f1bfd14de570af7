from __future__ import annotations

import multiprocessing
import os
import secrets
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.keys import KeyLimits, KeyRecord, KeysFileError, mint
from deployments.access import keys_file
from deployments.access.keys_file import KeysFile, LiveKeys, UnknownKeyError


def record(name: str = "k") -> KeyRecord:
    return mint(name, time.time(), secrets.token_bytes, limits=KeyLimits(requests_per_minute=5)).record


@pytest.fixture
def file(tmp_path: Path) -> KeysFile:
    return KeysFile(tmp_path / "state" / "keys.jsonl")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_no_file_is_no_keys(file: KeysFile) -> None:
    assert file.load() == {}
    assert file.version() is None


def test_keys_come_back_as_they_were_and_only_the_owner_reads_them(file: KeysFile) -> None:
    before = os.umask(0)
    try:
        records = [record(str(number)) for number in range(3)]
        for one in records:
            file.append(one)
    finally:
        os.umask(before)
    assert list(file.load().values()) == records
    assert mode(file.path) == 0o600
    assert mode(file.path.parent) == 0o700
    assert {path.name for path in file.path.parent.iterdir()} == {"keys.jsonl", ".keys.jsonl.lock"}


def test_a_revoked_key_stays_in_the_file_as_revoked(file: KeysFile) -> None:
    kept, gone = record("kept"), record("gone")
    file.append(kept)
    file.append(gone)
    assert file.revoke(gone.id, 123.0).revoked == 123.0
    assert file.revoke(gone.id, 456.0).revoked == 123.0
    assert file.load() == {kept.id: kept, gone.id: gone.revoke(123.0)}
    with pytest.raises(UnknownKeyError, match="no key has that id"):
        file.revoke("nosuchid", 1.0)


def test_the_same_id_twice_is_refused(file: KeysFile) -> None:
    one = record()
    file.append(one)
    with pytest.raises(KeysFileError, match="exists"):
        file.append(one)


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda text: text + "{not json\n", "line 3"),
        (lambda text: text.splitlines()[0] + "\n\n" + '{"id": "abcdefgh"}\n' + text, "line 3"),
        (lambda text: text + text, "line 3"),
        (lambda text: text[:-40], "line 2"),
    ],
)
def test_a_spoilt_line_is_named_by_its_number_alone(file: KeysFile, spoil: object, line: str) -> None:
    for name in ("secretname1", "secretname2"):
        file.append(record(name))
    text = file.path.read_text()
    file.path.write_text(spoil(text))
    with pytest.raises(KeysFileError, match=line) as caught:
        file.load()
    assert "keys.jsonl" in str(caught.value)
    assert "secretname" not in str(caught.value)
    changed = file.path.read_bytes()
    with pytest.raises(KeysFileError):
        file.append(record())
    assert file.path.read_bytes() == changed


def test_bytes_that_are_no_text_are_named_by_line(file: KeysFile) -> None:
    file.append(record())
    with file.path.open("ab") as raw:
        raw.write(b"\xff\xfe\n")
    with pytest.raises(KeysFileError, match="line 2"):
        file.load()


def test_the_size_is_bounded(file: KeysFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.append(record())
    monkeypatch.setattr(keys_file, "MAX_FILE_BYTES", file.path.stat().st_size + 10)
    with pytest.raises(KeysFileError, match="would grow over"):
        file.append(record())
    assert len(file.load()) == 1
    monkeypatch.setattr(keys_file, "MAX_FILE_BYTES", 10)
    with pytest.raises(KeysFileError, match="is over"):
        file.load()


def test_a_file_that_others_can_write_is_refused(file: KeysFile) -> None:
    file.append(record())
    file.path.chmod(0o666)
    with pytest.raises(KeysFileError, match="chmod 600"):
        file.load()


def test_a_failed_write_leaves_the_old_file(file: KeysFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.append(record())
    before = file.path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        file.append(record())
    assert file.path.read_bytes() == before
    assert not [path for path in file.path.parent.iterdir() if path.name.endswith(str(os.getpid()))]


def append_some(path: Path) -> None:
    for _ in range(10):
        KeysFile(path).append(record())


def test_writers_in_several_processes_lose_nothing(file: KeysFile) -> None:
    processes = [multiprocessing.get_context("fork").Process(target=append_some, args=(file.path,)) for _ in range(3)]
    for process in processes:
        process.start()
    seen = 0
    while any(process.is_alive() for process in processes):
        seen = max(seen, len(file.load()))
    for process in processes:
        process.join()
    assert len(file.load()) == 30 >= seen


def test_writers_in_several_threads_lose_nothing(file: KeysFile) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: file.append(record()), range(20)))
    assert len(file.load()) == 20


def test_changes_are_taken_over_without_a_restart(file: KeysFile) -> None:
    live = LiveKeys(file)
    assert not live.changed()
    one = record()
    file.append(one)
    assert live.changed()
    assert live.refresh()
    assert live.records == {one.id: one}
    assert not live.refresh()
    file.revoke(one.id, 5.0)
    assert live.refresh()
    assert live.records[one.id].revoked == 5.0


def test_a_spoilt_file_leaves_the_keys_in_force_and_is_reported_once(file: KeysFile) -> None:
    one = record()
    file.append(one)
    live = LiveKeys(file)
    reports: list[str] = []
    good = file.path.read_text()
    file.path.write_text("{")
    for _ in range(3):
        assert not live.refresh(reports.append)
    assert live.records == {one.id: one}
    assert len(reports) == 1
    assert "line 1" in reports[0]
    file.path.write_text(good)
    file.path.chmod(0o622)
    assert not live.refresh(reports.append)
    file.path.chmod(0o600)
    assert live.refresh(reports.append)
