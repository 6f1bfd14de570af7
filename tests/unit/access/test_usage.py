from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from deployments.access import usage
from deployments.access.usage import KeyUsage, UsageBook, read_usage


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "odd?name#%20" / "usage.sqlite"


def counts(one: KeyUsage) -> tuple[int, int, int, int]:
    return one.requests, one.rejected, one.prompt_tokens, one.completion_tokens


def test_counts_are_there_at_once_and_on_disk_after_a_flush(path: Path) -> None:
    book = UsageBook(path)
    book.add("a", KeyUsage(requests=1))
    book.add("a", KeyUsage(prompt_tokens=5, completion_tokens=7))
    book.add("b", KeyUsage(rejected=1))
    assert counts(book.of("a")) == (1, 0, 5, 7)
    assert read_usage(path) == {}
    assert book.flush()
    assert {key: counts(used) for key, used in read_usage(path).items()} == {"a": (1, 0, 5, 7), "b": (0, 1, 0, 0)}
    assert counts(book.of("a")) == (1, 0, 5, 7)
    assert book.of("a").last_used > 0
    assert book.of("nobody") == KeyUsage()
    assert path.stat().st_mode & 0o077 == 0


def test_a_file_that_was_only_just_begun_is_empty(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    assert read_usage(path) == {}


def test_several_processes_add_up(path: Path) -> None:
    first, second = UsageBook(path), UsageBook(path)
    for book in (first, second, first):
        book.add("a", KeyUsage(requests=1, prompt_tokens=10))
        assert book.flush()
    assert counts(second.of("a")) == (2, 0, 20, 0)
    assert second.flush()
    assert counts(second.of("a")) == (3, 0, 30, 0)
    assert counts(UsageBook(path).of("a")) == (0, 0, 0, 0)
    restarted = UsageBook(path)
    restarted.flush()
    assert counts(restarted.of("a")) == (3, 0, 30, 0)


def test_a_disk_that_takes_nothing_loses_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    book = UsageBook(path)
    book.add("a", KeyUsage(requests=1))

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(usage, "_add", full)
        assert not book.flush()
        book.add("a", KeyUsage(requests=1))
        assert not book.flush()
    assert len(caplog.records) == 1
    assert counts(book.of("a")) == (2, 0, 0, 0)
    assert book.flush()
    assert counts(read_usage(path)["a"]) == (2, 0, 0, 0)


@pytest.mark.parametrize("where", ["head", "middle"])
def test_a_damaged_file_is_put_aside(path: Path, where: str) -> None:
    book = UsageBook(path)
    for number in range(300):
        book.add(f"key-{number:05}", KeyUsage(requests=1))
    book.flush()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    data = bytearray(path.read_bytes())
    data[0 if where == "head" else 4096 :] = b"\xa5" * (len(data) - (0 if where == "head" else 4096))
    path.write_bytes(data)
    book.add("new", KeyUsage(requests=1))
    assert book.flush()
    assert set(read_usage(path)) == {"new"}
    (aside,) = path.parent.glob("usage.sqlite.damaged-*")
    assert aside.read_bytes() == data


def test_what_waits_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "MAX_PENDING_KEYS", 2)
    book = UsageBook(path)
    for key in ("a", "b", "c", "a"):
        book.add(key, KeyUsage(requests=1))
    assert [book.of(key).requests for key in ("a", "b", "c")] == [2, 1, 0]


def test_counting_from_many_threads(path: Path) -> None:
    book = UsageBook(path)

    def count() -> None:
        for _ in range(500):
            book.add("a", KeyUsage(requests=1))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        book.flush()
    book.flush()
    assert read_usage(path)["a"].requests == 2000
