"""Says why a cluster or a model of it failed, and where to read more."""

from __future__ import annotations

from pathlib import Path

from deployments.cli import log_tails
from deployments.cli.errors import CliError, ExitCode
from deployments.cli.follow import cause
from deployments.head.state import ClusterState, Phase

_LINES = 8
_HEAD_REFUSED = 3
"""Exit status of a head process that found its place taken."""


def explain_models(state: ClusterState, state_dir: Path) -> list[str]:
    """A paragraph per model that failed: why, and which log tells more."""
    return [
        f"model {name} failed: {model_cause(state, name, state_dir)}{_log_of(name, state_dir)}"
        for name, model in state.models.items()
        if model.phase is Phase.FAILED
    ]


def model_cause(state: ClusterState, model: str, state_dir: Path) -> str:
    """Why a model failed, in a line: the replica's own words where there are some, else Serve's."""
    log = log_tails.model_log(state_dir, model)
    said = cause(state.models[model].message)
    errors = log_tails.last_errors(log, 1) if log is not None else []
    return said if "Error" in said or not errors else f"{said} ({errors[-1].strip()})"


def _log_of(model: str, state_dir: Path) -> str:
    log = log_tails.model_log(state_dir, model)
    return f"\n    its log: {log}" if log is not None else f"\n    logs: {state_dir / 'logs'}"


def explain_death(exit_status: int | None, state: ClusterState | None, state_dir: Path) -> CliError:
    """Why the head process ended, from all that it left: its last state, its output, its log."""
    printed_to, printed = log_tails.head_output(state_dir, _LINES)
    if exit_status == _HEAD_REFUSED:
        return CliError("\n".join(printed) or "the head process refused to start", code=ExitCode.REFUSED)
    reason = state.message if state is not None and state.phase is Phase.FAILED else ""
    lines = [f"the head process of the cluster ended{_status(exit_status)}" + (f": {reason}" if reason else "")]
    log = log_tails.head_log(state_dir)
    told = [line for line in [*(log_tails.last_errors(log, _LINES) if log is not None else []), *printed] if line]
    lines += [f"  | {line}" for line in dict.fromkeys(told)]
    where = [str(path) for path in (printed_to, log) if path is not None]
    return CliError("\n".join(lines), f"More is in {' and '.join(where)}. Nothing of the cluster is left running.")


def _status(exit_status: int | None) -> str:
    if exit_status is None:
        return ""
    if exit_status < 0:
        return f" by signal {-exit_status}"
    return f" with status {exit_status}"
