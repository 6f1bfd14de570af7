"""vLLM plugin (entry point group `vllm.general_plugins`): vLLM loads it in every engine process.

It does nothing outside a Pointsman replica, so a bare vLLM server in the same environment stays bare.
"""

from __future__ import annotations

import contextlib
import os

from deployments.processes import OWNER_VARIABLE, bind_to_cores, tie_to_owner


def register() -> None:
    """Tie an engine process to the process that owns it, and give the engine core the heartbeat method."""
    if OWNER_VARIABLE not in os.environ:
        return
    # Before the environment changes: the room for a process's title is found by its first variable, and found once.
    with contextlib.suppress(ImportError):
        import setproctitle

        setproctitle.getproctitle()
    # A core whose replica is gone already must not go on to load a model.
    if tie_to_owner():
        # Before the threads are made that compute: they inherit it.
        bind_to_cores()
    from deployments.engines.vllm_internals import install_in_engine_core

    install_in_engine_core()
    if "POINTSMAN_POOL_MAP" in os.environ:
        from deployments.engines.vllm_trunk import install_trunk

        install_trunk()
