"""A PostgreSQL server of a test's own, from Debian's package."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil

USER = "pointsman"
DATABASE = "records"


def binaries() -> Path:
    """The folder of `initdb` and `postgres`. Raises `RuntimeError` that says what to install."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    if on_path is None:
        raise RuntimeError("PostgreSQL is not installed: apt-get install postgresql, as .ci/run does")
    return Path(on_path).resolve().parent


class Postgres:
    """One server: `start`, `stop`, and `start` again with the same data. It refuses to run as root, so root lends it another user."""

    def __init__(self, folder: Path, port: int, password: str) -> None:
        self.port = port
        self._bin = binaries()
        self._data = folder / "data"
        self._log = folder / "postgres.log"
        self._owner = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        folder.mkdir(parents=True, exist_ok=True)
        secret = folder / "password"
        secret.write_text(password)
        if self._owner is not None:
            # Temporary folders of tests can be entered by their owner alone.
            for path in (folder, secret):
                os.chown(path, self._owner.pw_uid, self._owner.pw_gid)
            for parent in folder.parents:
                if parent.is_relative_to("/tmp") and parent != Path("/tmp"):  # noqa: S108 - where pytest puts them
                    parent.chmod(parent.stat().st_mode | 0o011)
        self._run(
            "initdb", "-D", str(self._data), "-U", USER, "--pwfile", str(secret), "-A", "scram-sha-256", "-E", "UTF8"
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.start()
        self.sql(password, f"CREATE DATABASE {DATABASE}")

    @property
    def url(self) -> str:
        """URL of the database, without a password."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{DATABASE}"

    def start(self) -> None:
        """Returns once it takes connections."""
        command = [str(self._bin / "postgres"), "-D", str(self._data), "-p", str(self.port), "-h", "127.0.0.1"]
        command += ["-k", "", "-c", "fsync=off"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, **self._as_owner())
        deadline = time.monotonic() + 30
        while subprocess.run(
            [str(self._bin / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.port), "-q"], check=False
        ).returncode:
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"PostgreSQL did not start: {self._log.read_text()[-500:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """At once, with whatever it is doing."""
        process, self._process = self._process, None
        if process is not None and psutil.pid_exists(process.pid):
            process.send_signal(signal.SIGQUIT)
            process.wait(20)

    def _as_owner(self) -> dict[str, object]:
        if self._owner is None:
            return {}
        return {"user": self._owner.pw_uid, "group": self._owner.pw_gid, "extra_groups": [], "cwd": "/"}

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._bin / program), *arguments], capture_output=True, text=True, check=False, **self._as_owner()
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr[-500:]}")

    def sql(self, password: str, statement: str, database: str = "postgres") -> None:
        """Run a statement as the owner of the databases."""
        command = [str(self._bin / "psql"), "-h", "127.0.0.1", "-p", str(self.port), "-U", USER, "-d", database]
        env = {**os.environ, "PGPASSWORD": password}
        subprocess.run([*command, "-qc", statement], check=True, env=env, capture_output=True)
