"""Starts a cluster: check, build, start, watch, report. What `up` and `serve` share."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.cli import output, ready
from deployments.cli.config_files import load_config
from deployments.cli.errors import CliError, ExitCode
from deployments.cli.failures import explain_death, explain_models
from deployments.cli.follow import Outcome, follow
from deployments.cli.head_process import HeadProcess, OtherHead, config_hash, launched_with
from deployments.cli.obtain import obtain_models, sources_of
from deployments.cli.place import Place, find_place, require_state_directory
from deployments.cli.progress import Waiting
from deployments.cli.signals import stop_on_signals
from deployments.cli.teardown import STOP_TIMEOUT_S, stop_cluster, stop_limit
from deployments.head.state import ClusterState, Phase, read_state

if TYPE_CHECKING:
    from cluster.config.cluster import ClusterConfig

START_SLACK_S = 120.0
"""Seconds beyond the slowest model's own limit that a start may take."""

WATCH_S = 1.0


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """What the user asked for."""

    config_path: Path
    state_dir: Path | None
    foreground: bool = False
    timeout_s: float | None = None
    json: bool = False


def launch(options: LaunchOptions) -> ExitCode:
    """Start the cluster of a config, or say that it runs already. Raises `CliError`; then nothing is left running."""
    config = load_config(options.config_path)
    place = find_place(options.state_dir, config)
    timeout_s = options.timeout_s or _start_limit(config)
    running = place.state
    if running is not None:
        return _join(running, config, place, options, timeout_s)
    _remove_leftovers(place)
    check_surroundings(config, place)
    began = time.monotonic()
    with stop_on_signals():
        sources = sources_of(config)
        folders = prepare(sources, len(config.models) - len(sources))
        paths = {name: folders.get(name) for name in config.models}
        head = HeadProcess.start(config, options.config_path, place.state_dir, paths, bound=options.foreground)
        try:
            state = _start(head, config, place, timeout_s)
            report = ready.Report(state, place, time.monotonic() - began, config.keys_required)
            report.show(as_json=options.json)
            if options.foreground:
                return _stay(head, place)
            head.release()
            return ExitCode.OK
        except KeyboardInterrupt:
            _bring_down(head, place, "stopping the cluster")
            output.remark("The cluster is stopped; nothing of it is left running.")
            return ExitCode.INTERRUPTED
        except (CliError, BrokenPipeError):
            # A `CliError` comes after the end of the head process; and whoever reads no further leaves a cluster running.
            raise
        except Exception:
            _bring_down(head, place, "the start failed, stopping")
            raise


def prepare(sources: Mapping[str, str], without_files: int = 0) -> dict[str, Path]:
    """The folder of each model that can be had, built or downloaded where needed; warns of every one that cannot.

    Raises `CliError` if nothing is left to serve: none of these models, and no other that needs no files.
    """
    with Waiting("Preparing the models") as waiting:
        paths, failed = obtain_models(sources, lambda work: waiting.part(work.model, work.message, work.fraction))
    if failed and not paths and not without_files:
        problems = "\n".join(f"  {one.model}: {one.problem}\n    {one.remedy}" for one in failed)
        raise CliError(f"no model can be had, so nothing was started:\n{problems}")
    for one in failed:
        output.warn(f"{one.model} cannot be had, and the others start without it: {one.problem}\n  {one.remedy}")
    return paths


def _start_limit(config: ClusterConfig) -> float:
    return max(model.replicas.start_timeout_s for model in config.models.values()) + START_SLACK_S


def _join(
    running: ClusterState, config: ClusterConfig, place: Place, options: LaunchOptions, timeout_s: float
) -> ExitCode:
    """A cluster runs in this state directory: fine if it is the one that was asked for."""
    if launched_with(place.state_dir, running) != config_hash(config):
        raise CliError(
            f"another cluster already runs with state directory {place.state_dir} "
            f"(process {running.pid} at {running.url}, config {running.config_path})",
            f"Stop it with `{place.command('down')}`, or give this one another --state-dir and ingress.port.",
            ExitCode.REFUSED,
        )
    if options.foreground:
        raise CliError(
            f"this cluster already runs in the background (process {running.pid})",
            f"Stop it with `{place.command('down')}` to run it in the foreground.",
            ExitCode.REFUSED,
        )
    if running.phase is Phase.STOPPING:
        raise CliError("this cluster is being stopped at this moment", "Try again in a few seconds.", ExitCode.REFUSED)
    with Waiting(f"This cluster already runs (process {running.pid})") as waiting:
        outcome, state = follow(OtherHead(running, place.state_dir), waiting, timeout_s)
    if outcome is not Outcome.SERVING or state is None:
        raise CliError(
            f"the cluster already runs, but does not serve ({outcome.value})",
            f"Look at it with `{place.command('status')}`, or stop it with `{place.command('down')}`.",
        )
    ready.Report(state, place, None, config.keys_required).show(as_json=options.json)
    return ExitCode.OK


def _remove_leftovers(place: Place) -> None:
    """End what a head process that was killed has left behind."""
    state = place.noted
    if state is None:
        return
    stopped = stop_cluster(
        place.state_dir, state.pid, state.cluster_id, STOP_TIMEOUT_S, lambda _doing: None, head_runs=False
    )
    if stopped.swept:
        output.warn(f"ended {stopped.swept} processes that an earlier cluster had left behind")


def check_surroundings(config: ClusterConfig, place: Place) -> None:
    """What would make a start fail later is better known before a model is built. Raises `CliError`."""
    from deployments.head.ports import PortInUseError, check_port_free
    from deployments.telemetry.content import CAPTURE, captures_content
    from deployments.telemetry.otlp import TelemetryConfigError
    from deployments.telemetry.setup import check_telemetry

    require_state_directory(place.state_dir)
    try:
        check_telemetry(config.telemetry)
        if config.telemetry.traces != "off" and captures_content(os.environ):
            output.warn(f"traces record what is asked and answered, because {CAPTURE} is set")
    except TelemetryConfigError as error:
        raise CliError(str(error), code=ExitCode.USAGE) from None
    _check_keys(config, place)
    _check_records(config, place)
    try:
        check_port_free(config.ingress.host, config.ingress.port)
    except PortInUseError as error:
        raise CliError(str(error), code=ExitCode.REFUSED) from None


def _check_records(config: ClusterConfig, place: Place) -> None:
    """A database of a later release, or one without its password, is known before anything starts."""
    from deployments.paths import records_path

    if not config.records.enabled or (config.records.url is None and not records_path(place.state_dir).exists()):
        return
    from deployments.records.check import check_database
    from deployments.records.schema import NewerDatabaseError
    from deployments.records.target import RecordsConfigError

    try:
        remark = check_database(config.records, place.state_dir)
    except (NewerDatabaseError, RecordsConfigError) as error:
        raise CliError(str(error), code=ExitCode.USAGE) from None
    if remark:
        output.warn(remark)


def _check_keys(config: ClusterConfig, place: Place) -> None:
    """Beyond this machine nothing listens without a key that opens it."""
    from cluster.config.host import is_loopback
    from cluster.keys import KeysFileError
    from deployments.access.keys_file import KeysFile

    if not config.keys_required:
        return
    path = config.keys_path(place.state_dir)
    try:
        valid = any(record.revoked is None for record in KeysFile(path).load().values())
    except KeysFileError as error:
        raise CliError(str(error)) from None
    if valid:
        return
    remedy = f"Make one: {place.command('keys add NAME')}"
    if is_loopback(config.ingress.host):
        output.warn(f"every request needs a key, and there is none in {path}. {remedy}")
        return
    raise CliError(
        f"the ingress would listen on {config.ingress.host}, beyond this machine, and there is no valid key in {path}",
        f"{remedy} (with the same --config). Or set ingress.host to 127.0.0.1.",
        ExitCode.REFUSED,
    )


def _start(head: HeadProcess, config: ClusterConfig, place: Place, timeout_s: float) -> ClusterState:
    with Waiting(f"Starting the cluster {config.name}") as waiting:
        outcome, state = follow(head, waiting, timeout_s)
    if outcome is Outcome.SERVING and state is not None:
        for failed in explain_models(state, place.state_dir):
            output.warn(failed)
        return state
    if outcome is Outcome.TIMED_OUT and state is not None and _serves(state):
        output.warn(f"not everything was ready after {output.duration(timeout_s)}; what is ready serves")
        return state
    if outcome is Outcome.DIED and head.exit_status == 0:
        raise CliError("the cluster was stopped from elsewhere while it started", code=ExitCode.REFUSED)
    if outcome is Outcome.DIED:
        raise explain_death(head.exit_status, state, place.state_dir)
    reasons = explain_models(state, place.state_dir) if state is not None else []
    _bring_down(head, place, "nothing serves, stopping")
    if outcome is Outcome.TIMED_OUT:
        raise CliError(
            f"nothing serves after {output.duration(timeout_s)}, so the cluster was stopped",
            "Give it longer with --timeout, or look into the logs in " + str(place.state_dir / "logs"),
        )
    ingress = [state.message] if state is not None and state.message else []
    raise CliError("no model serves, so the cluster was stopped:\n  " + "\n  ".join([*ingress, *reasons]))


def _serves(state: ClusterState) -> bool:
    return any(model.phase is Phase.READY for model in state.models.values())


def _stay(head: HeadProcess, place: Place) -> ExitCode:
    output.remark("Running in the foreground; Ctrl-C brings everything down.")
    while head.exit_status is None:
        time.sleep(WATCH_S)
    state = read_state(place.state_dir)
    if state is None and head.exit_status == 0:
        output.remark("The cluster was stopped from elsewhere.")
        return ExitCode.OK
    raise explain_death(head.exit_status, state, place.state_dir)


def _bring_down(head: HeadProcess, place: Place, why: str) -> None:
    """End what was started, also when Ctrl-C comes again: then at once."""
    cluster_id = head.state.cluster_id if head.state is not None else None
    try:
        with Waiting(why[:1].upper() + why[1:]) as waiting:
            limit_s = STOP_TIMEOUT_S if head.state is None else stop_limit(head.state)
            stop_cluster(place.state_dir, head.pid, cluster_id, limit_s, lambda doing: waiting.part("cluster", doing))
    except KeyboardInterrupt:
        output.remark("Ending it at once.")
        stop_cluster(place.state_dir, head.pid, cluster_id, 0.0, lambda _doing: None)
    head.release()
