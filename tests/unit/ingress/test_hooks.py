"""An operator's hook: its verdict, its time limit, and that one that hangs harms nobody else."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from types import ModuleType

import pytest

from deployments.ingress import hooks
from deployments.ingress.hooks import HookRunner
from tests.waiting import until

PATH = "a_hook_of_the_ingress:check"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = ModuleType("a_hook_of_the_ingress")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    made = threading.Event()
    yield made
    made.set()


async def test_it_says_yes_or_no_of_question_and_answer(module: ModuleType) -> None:
    module.check = lambda question, answer: (question, answer) == ("q", "a")  # type: ignore[attr-defined]
    runner = HookRunner()
    assert (await runner.judge(PATH, "q", "a", 3)).ok
    assert not (await runner.judge(PATH, "q", "b", 3)).ok


async def test_one_that_hangs_verifies_nothing_and_their_number_is_bounded(
    module: ModuleType, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "MAX_AT_ONCE", 2)
    module.check = lambda question, answer: gate.wait(30)  # type: ignore[attr-defined]
    runner = HookRunner()
    for _ in range(2):
        verdict = await runner.judge(PATH, "q", "a", 0.05)
        assert (verdict.ok, verdict.reason) == (False, "the hook took longer than 0.05 s")
    began = time.monotonic()
    refused = await runner.judge(PATH, "q", "a", 30)
    assert not refused.ok and time.monotonic() - began < 3
    gate.set()
    await until(lambda: runner._running == 0, 3)
    assert (await runner.judge(PATH, "q", "a", 3)).ok


async def test_one_that_cannot_be_loaded_verifies_nothing(module: ModuleType) -> None:
    verdict = await HookRunner().judge(PATH, "q", "a", 3)
    assert (verdict.ok, verdict.reason) == (False, "the hook cannot be loaded")
