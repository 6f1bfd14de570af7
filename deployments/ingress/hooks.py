"""Runs an operator's check on threads of its own, within a time limit."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Final

from cluster.verification.hook import NAME, Hook, HookError, judge_with, load_hook
from cluster.verification.verdict import Verdict

_log = logging.getLogger(__name__)

MAX_AT_ONCE: Final = 32
"""Threads of hooks at once: one that hangs keeps its thread, since nothing can end it."""


class HookRunner:
    """The hook of one ingress. Everything but the hook itself runs on the event loop."""

    def __init__(self) -> None:
        self._running = 0
        self._loaded: dict[str, Hook] = {}
        self._broken: set[str] = set()

    async def judge(self, path: str, question: str, answer: str, timeout_s: float) -> Verdict:
        """The hook's verdict; what it cannot say in `timeout_s` seconds is not verified."""
        if self._running >= MAX_AT_ONCE:
            return Verdict(False, NAME, f"{MAX_AT_ONCE} calls of the hook are running, and none has an end")
        loop = asyncio.get_running_loop()
        said: asyncio.Future[Verdict] = loop.create_future()

        def settle(verdict: Verdict) -> None:
            self._running -= 1
            if not said.done():
                said.set_result(verdict)

        def work() -> None:
            verdict = self._call(path, question, answer)
            try:
                loop.call_soon_threadsafe(settle, verdict)
            except RuntimeError:
                # The loop is closed: the ingress has stopped, and nobody waits.
                return

        self._running += 1
        # A daemon, so that a hook which never returns does not keep the ingress from stopping.
        threading.Thread(target=work, name="verification-hook", daemon=True).start()
        try:
            async with asyncio.timeout(timeout_s):
                return await said
        except TimeoutError:
            return Verdict(False, NAME, f"the hook took longer than {timeout_s:g} s")

    def _call(self, path: str, question: str, answer: str) -> Verdict:
        try:
            hook = self._loaded.get(path) or load_hook(path)
        except HookError as error:
            if path not in self._broken:
                self._broken.add(path)
                _log.error("%s", error)
            return Verdict(False, NAME, "the hook cannot be loaded")
        self._loaded[path] = hook
        return judge_with(hook, question, answer)
