"""The file of hashed keys: JSON lines, written as a whole under a lock, and followed while a cluster runs."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from cluster.keys import KeyRecord, KeysFileError, dump_records, load_records

_log = logging.getLogger(__name__)

MAX_FILE_BYTES: Final = 8 * 1024 * 1024
"""Bytes of a keys file, about 25,000 keys."""

Records = Mapping[str, KeyRecord]
"""Key records by id."""

Version = tuple[int, int, int, int]


class UnknownKeyError(LookupError):
    """No key has that id; the message says how to list them."""


class KeysFile:
    """Reads and changes one keys file. Writers wait for each other; readers see the old file or the new one, whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> Records:
        """The records by id, none if there is no file.

        Raises `KeysFileError` naming file and line for what is not a record, and for a file that others may write or
        that is over `MAX_FILE_BYTES`.
        """
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if stat.S_IMODE(status.st_mode) & 0o022:
                    raise KeysFileError(f"{self.path} can be written by other users; run `chmod 600 {self.path}`")
                data = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return MappingProxyType({})
        if len(data) > MAX_FILE_BYTES:
            raise KeysFileError(f"{self.path} is over {MAX_FILE_BYTES} bytes; remove keys that were revoked")
        try:
            return MappingProxyType(load_records(data.decode()))
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise KeysFileError(
                f"{self.path}: line {line} of the keys file is not UTF-8; restore or remove it"
            ) from None
        except KeysFileError as error:
            raise KeysFileError(f"{self.path}: {error}") from None

    def append(self, record: KeyRecord) -> None:
        """Add a key. Raises `KeysFileError` for a file that cannot be read or would grow too large, or a known id."""
        with self._locked():
            records = dict(self.load())
            if record.id in records:
                raise KeysFileError("a key with the same public id exists; make another one")
            records[record.id] = record
            self._write(records)

    def revoke(self, key_id: str, now: float) -> KeyRecord:
        """Refuse a key from `now` (seconds since 1970) on; returns its record. Raises `UnknownKeyError`."""
        with self._locked():
            records = dict(self.load())
            if key_id not in records:
                raise UnknownKeyError("no key has that id")
            records[key_id] = records[key_id].revoke(now)
            self._write(records)
            return records[key_id]

    def version(self) -> Version | None:
        """What changes whenever the file or its mode does: two times in ns, bytes, inode. None if there is no file."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        # The lock is a file of its own: the keys file is replaced, and a lock would stay on the one that is gone.
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(
            self.path.with_name(f".{self.path.name}.lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _write(self, records: Records) -> None:
        data = dump_records(records.values()).encode()
        if len(data) > MAX_FILE_BYTES:
            raise KeysFileError(f"{self.path} would grow over {MAX_FILE_BYTES} bytes; remove keys that were revoked")
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


class LiveKeys:
    """The records in force in a running process: `refresh` takes over the file when it has changed."""

    def __init__(self, file: KeysFile) -> None:
        self._file = file
        # Before the file is read, so that a change in between is seen the next time.
        self._version = file.version()
        self.records: Records = file.load()

    def changed(self) -> bool:
        """Whether the file is another one than was last read; a look at its metadata."""
        return self._file.version() != self._version

    def refresh(self, report: Callable[[str], None] = _log.error) -> bool:
        """Read the file again if it has changed; whether it had.

        A file that cannot be read leaves the keys as they were: what was valid stays valid, and `report` is told once.
        """
        version = self._file.version()
        if version == self._version:
            return False
        self._version = version
        try:
            self.records = self._file.load()
        except (KeysFileError, OSError) as error:
            reason = str(error) if isinstance(error, KeysFileError) else type(error).__name__
            report(f"the keys file has changed and cannot be read, the keys before stay in force: {reason}")
            return False
        return True
