"""vLLM plugin (entry point group `vllm.general_plugins`): vLLM loads it in every engine process.

It does nothing outside a Pointsman replica, so a bare vLLM server in the same environment stays bare.
"""

from __future__ import annotations

import os

from deployments.processes import OWNER_VARIABLE, die_with_parent


def register() -> None:
    """Tie an engine process to the replica that owns it, and give the engine core the heartbeat method."""
    owner = os.environ.get(OWNER_VARIABLE)
    if owner is None:
        return
    from deployments.engines.vllm_internals import install_in_engine_core

    install_in_engine_core()
    if int(owner) != os.getpid():
        die_with_parent(int(owner))
