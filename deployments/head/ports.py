"""Names who holds a port, before anything is started that would fail for want of it."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import IO

import psutil

from deployments.head.locks import LockHeldError, take_lock


class PortInUseError(RuntimeError):
    """The port that the ingress shall listen on is taken."""


def hold_port(port: int, state_dir: Path) -> IO[str]:
    """Keep other clusters of this user from the port until the returned file is closed.

    Ingresses bind long after the port was looked at, and share it, so two clusters could both find it free.
    Raises `PortInUseError` naming the cluster that holds it.
    """
    directory = Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp") / f"pointsman-{os.getuid()}"  # noqa: S108 - checked
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise PortInUseError(
                f"{directory} must be a directory that only this user may use; remove it or put it right with chmod 700"
            )
        return take_lock(directory / f"port-{port}.lock", f"process {os.getpid()}, state directory {state_dir}")
    except LockHeldError as error:
        raise PortInUseError(
            f"port {port} is held by another cluster ({error.note or 'it does not say which'}). "
            "Stop it with `pointsman down --state-dir DIR`, or choose another `ingress.port`."
        ) from None
    except OSError as error:
        raise PortInUseError(
            f"port {port} cannot be reserved in {directory}: {error.strerror}; set XDG_RUNTIME_DIR to a directory "
            "that this user may write to"
        ) from None


def check_port_free(host: str, port: int) -> None:
    """Raises `PortInUseError` naming the process that listens there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            raise PortInUseError(
                f"port {port} may not be used by this user: choose `ingress.port` above 1023"
            ) from None
        except OSError as error:
            raise PortInUseError(
                f"{host}:{port} cannot be listened on ({error.strerror}); it is held by {_holder(port)}. "
                "Stop that process, or choose another `ingress.port`."
            ) from None


def _holder(port: int) -> str:
    try:
        for connection in psutil.net_connections(kind="tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr[1] == port
            if listens and connection.pid:
                process = psutil.Process(connection.pid)
                return f"process {process.pid} ({process.name()})"
    except psutil.Error:
        return "a process that this user may not see"
    return "a process that this user may not see"
