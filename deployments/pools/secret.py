"""The folder of a cluster's expert pools, and the secret in it."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from deployments.pools.spec import pools_folder, secret_path

_SECRET_BYTES = 32


def make_pools_folder(state_dir: Path) -> None:
    """An empty folder with a fresh secret, readable by this user alone. What an earlier cluster left is removed."""
    remove_pools_folder(state_dir)
    folder = pools_folder(state_dir)
    folder.mkdir(mode=0o700)
    descriptor = os.open(secret_path(state_dir), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(_SECRET_BYTES))


def remove_pools_folder(state_dir: Path) -> None:
    """Remove it, if it is there."""
    shutil.rmtree(pools_folder(state_dir), ignore_errors=True)
