"""Watches a cluster start, model by model, until it serves, has failed, or takes too long."""

from __future__ import annotations

import time
from enum import Enum
from pathlib import Path
from typing import Protocol

import msgspec

from deployments.cli.api import Api, ApiUnreachableError
from deployments.cli.output import duration
from deployments.cli.progress import Waiting
from deployments.head.state import ClusterState, ModelState, Phase

POLL_S = 0.2
ATTACH_S = 20.0
"""Seconds that the ingress may need to connect to replicas that Serve calls running."""


LAST_WORDS_S = 1.0
"""Seconds between a head process's last state and its end, at most."""


class Outcome(Enum):
    """How a start ended."""

    SERVING = "serving"
    FAILED = "failed"
    """The cluster runs, and no model does."""
    DIED = "died"
    """The head process ended."""
    TIMED_OUT = "timed out"


class Head(Protocol):
    """A head process that can be watched."""

    @property
    def state_dir(self) -> Path: ...
    @property
    def pid(self) -> int: ...
    @property
    def exit_status(self) -> int | None: ...
    @property
    def state(self) -> ClusterState | None: ...


class Readiness(msgspec.Struct, frozen=True):
    """What is used of `/readyz`."""

    models: dict[str, ModelReadiness] = {}


class ModelReadiness(msgspec.Struct, frozen=True):
    """One model, as the ingress sees it."""

    ready: bool = False
    replicas: int = 0
    reason: str | None = None


def follow(head: Head, waiting: Waiting, timeout_s: float) -> tuple[Outcome, ClusterState | None]:
    """Show progress until the start has ended one way or another; returns the last state, too."""
    deadline = time.monotonic() + timeout_s
    state: ClusterState | None = None
    while head.exit_status is None:
        state = head.state or state
        if state is not None:
            _show(state, waiting)
            outcome = _outcome(state)
            if outcome is Outcome.SERVING:
                return _await_routes(head, state, waiting, deadline)
            if outcome is Outcome.FAILED:
                return (Outcome.DIED if _is_dying(head) else Outcome.FAILED), state
        if time.monotonic() > deadline:
            return Outcome.TIMED_OUT, state
        time.sleep(POLL_S)
    return Outcome.DIED, head.state or state


def _is_dying(head: Head) -> bool:
    """A head that fails itself says so just before it ends; one whose models fail stays."""
    deadline = time.monotonic() + LAST_WORDS_S
    while head.exit_status is None and time.monotonic() < deadline:
        time.sleep(POLL_S / 4)
    return head.exit_status is not None


def _outcome(state: ClusterState) -> Outcome | None:
    if state.phase in (Phase.READY, Phase.DEGRADED):
        return Outcome.SERVING
    return Outcome.FAILED if state.phase is Phase.FAILED else None


def _await_routes(
    head: Head, state: ClusterState, waiting: Waiting, deadline: float
) -> tuple[Outcome, ClusterState | None]:
    """Serve calls a model running a moment before the ingress has routes to it: ready means that it answers."""
    wanted = {name for name, model in state.models.items() if model.phase is Phase.READY}
    api = Api(state.url, None)
    deadline = min(deadline, time.monotonic() + ATTACH_S)
    while time.monotonic() < deadline and head.exit_status is None:
        try:
            readiness = api.get("/readyz", Readiness, accept=(200, 503))
        except ApiUnreachableError:
            readiness = Readiness()
        if wanted <= {name for name, model in readiness.models.items() if model.ready}:
            return Outcome.SERVING, head.state or state
        waiting.title("waiting until every model answers")
        time.sleep(POLL_S)
    return (Outcome.DIED if head.exit_status is not None else Outcome.TIMED_OUT), head.state or state


def _show(state: ClusterState, waiting: Waiting) -> None:
    if state.message:
        waiting.part("cluster", state.message)
    elif state.phase in (Phase.STARTING, Phase.READY, Phase.DEGRADED):
        waiting.done("cluster", f"listening at {state.url}")
    for name, model in state.models.items():
        show_model(waiting, name, model)


def show_model(waiting: Waiting, name: str, model: ModelState) -> None:
    """One model's line."""
    if model.phase is Phase.READY:
        after = f" after {duration(model.ready_after_s)}" if model.ready_after_s is not None else ""
        waiting.done(name, f"ready{after}")
    elif model.phase is Phase.FAILED:
        waiting.done(name, f"failed: {cause(model.message)}", good=False)
    else:
        waiting.part(name, "loading" if not model.message else f"loading ({cause(model.message)})")


def cause(message: str) -> str:
    """The line of a long message that says what went wrong: the last one that is not part of a traceback's frame."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line or "Exception" in line]
    return (telling or lines or ["no reason given"])[-1]
