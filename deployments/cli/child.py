"""How a process begins that the command line starts for heavy work and hears from by messages."""

from __future__ import annotations

import os

from deployments.processes import OWNER_VARIABLE, die_with_parent


def begin() -> int:
    """End with the command that started it; returns the file descriptor for messages.

    Libraries print: what they print goes to stderr from now on, not among the messages.
    """
    owner = os.environ.pop(OWNER_VARIABLE, "")
    if owner.isdigit():
        die_with_parent(int(owner))
    messages = os.dup(1)
    os.dup2(2, 1)
    return messages
