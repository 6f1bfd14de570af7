"""The head process's life: start, watch, stop."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from ray import serve
from ray.serve.schema import ApplicationStatus

from cluster.config.cluster import ClusterConfig
from deployments.head.applications import applications_of, ingress_application, run_application, run_model
from deployments.head.best_effort import attempt
from deployments.head.change import ChangeError, Changer, Running
from deployments.head.guard import Guard
from deployments.head.mailbox import ChangePhase, ChangeProgress, ChangeRequest, put_progress, take_request
from deployments.head.ports import check_port_free, hold_port
from deployments.head.ray_cluster import RayCluster
from deployments.head.reasons import cause, of_pools, short
from deployments.head.state import (
    ClusterState,
    ModelState,
    Phase,
    lock_state,
    make_state_directory,
    remove_state,
    write_config_in_force,
    write_state,
)
from deployments.names import INGRESS_APPLICATION, model_application_name, pools_application_name
from deployments.pools.secret import make_pools_folder, remove_pools_folder
from deployments.processes import adopt_orphans, kill_all, processes_of
from deployments.telemetry.log_safety import Safe

_log = logging.getLogger(__name__)

POLL_S = 0.5
CALM_POLL_S = 2.0
"""Between two looks at a cluster that is ready."""
MAIL_POLL_S = 0.25
"""Between two looks for a config that is to be brought into force."""
STOP_S = 10.0
"""Seconds for everything about a graceful stop but the requests that are under way."""
KILL_GRACE_S = 3.0
FIRST_ALONE_S = 60.0
"""Seconds for which the first model may load alone; one that hangs must not keep the others from serving."""
BLIND_S = 30.0
"""Seconds for which Serve may fail to say how the cluster is."""


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """What the command line hands to the head process."""

    cluster_id: str
    config: ClusterConfig
    config_path: Path
    state_dir: Path
    model_paths: dict[str, Path | None]
    """Folder of each model's checkpoint, already built or downloaded."""


class Head:
    """Runs a cluster until it is told to stop. One per process."""

    def __init__(self, options: HeadOptions) -> None:
        self._options = options
        self._config = options.config
        self._cluster_id = options.cluster_id
        self._stop = threading.Event()
        self._started_at = time.time()
        self._models = {name: ModelState(Phase.STARTING) for name in self._config.models}
        self._applications = {name: model_application_name(name) for name in self._config.models}
        self._config_path = options.config_path
        self._model_paths = dict(options.model_paths)
        self._changer = Changer(options.config, options.state_dir, self._pause)
        self._ray_address = ""
        self._ray_temp_dir = ""
        self._blind_since: float | None = None
        self._ready_after: float | None = None
        self._failure: str | None = None

    def run(self) -> None:
        """Start the cluster and watch it until a signal comes; then leave nothing behind.

        Raises `AlreadyRunningError` or `PortInUseError` before anything is started.
        """
        make_state_directory(self._options.state_dir)
        port = self._config.ingress.port
        with lock_state(self._options.state_dir), hold_port(port, self._options.state_dir):
            check_port_free(self._config.ingress.host, port)
            adopt_orphans()
            self._take_signals()
            guard = Guard(self._cluster_id)
            cluster = RayCluster(self._config.ray)
            try:
                self._ray_temp_dir = cluster.prepare()
                write_config_in_force(self._options.state_dir, self._config)
                make_pools_folder(self._options.state_dir)
                self._write(Phase.STARTING, "starting Ray")
                _log.info("starting", extra={"cluster": self._config.name})
                self._ray_address = cluster.start()
                # Ray has put its own handlers in the place of ours; they would end this process without its clean-up.
                self._take_signals()
                cluster.start_serve()
                self._deploy()
                self._watch()
            except Exception as error:
                _log.exception("the cluster failed")
                self._failure = f"{type(error).__name__}: {error}"
                raise
            finally:
                self._shut_down(cluster, guard)

    def _deploy(self) -> None:
        """The ingress and the first model first: one model that answers early beats all of them a little sooner."""
        run_application(INGRESS_APPLICATION, ingress_application(self._config, self._options.state_dir))
        for position, name in enumerate(self._start_order()):
            if self._stop.is_set():
                return
            path = self._model_paths[name]
            run_model(name, self._config, path, self._options.state_dir, self._applications[name])
            if position == 0:
                self._wait_for(name, FIRST_ALONE_S)

    def _wait_for(self, name: str, limit_s: float) -> None:
        """Returns when the model serves or has failed, after the time limit, and when the cluster is to stop."""
        deadline = time.monotonic() + limit_s
        while self._models[name].phase is Phase.STARTING and time.monotonic() < deadline and not self._stop.is_set():
            self._look()
            self._stop.wait(POLL_S)

    def _start_order(self) -> list[str]:
        """The default role's model first, then the order of the config."""
        first = self._config.models_of(self._config.routing.default_role)
        return sorted(self._config.models, key=lambda name: name not in first[:1])

    def _watch(self) -> None:
        while not self._stop.is_set():
            self._look()
            deadline = time.monotonic() + (POLL_S if self._ready_after is None else CALM_POLL_S)
            while time.monotonic() < deadline and not self._stop.wait(MAIL_POLL_S):
                request = take_request(self._options.state_dir)
                if request is not None:
                    self._change(request)

    def _change(self, request: ChangeRequest) -> None:
        """Bring another config into force, or say why not; then the old one still is."""

        def say(message: str, phase: ChangePhase = ChangePhase.RUNNING) -> None:
            _log.info("changing the config: %s", Safe(message))
            put_progress(self._options.state_dir, ChangeProgress(request.id, phase, message))

        try:
            new = ClusterConfig.model_validate_json(request.config)
            paths = {name: None if path is None else Path(path) for name, path in request.model_paths.items()}
            paths = self._model_paths | paths
            running = Running(self._config, self._applications)
            then = self._changer.change(running, new, paths, request.timeout_s, say)
        except ChangeError as error:
            say(str(error), ChangePhase.FAILED)
            return
        except Exception as error:  # noqa: BLE001 - the cluster serves on, whatever a change ran into
            _log.exception("a change of the config failed")
            say(f"{type(error).__name__}: see the head's log", ChangePhase.FAILED)
            return
        self._config, self._applications, self._model_paths = then.config, dict(then.applications), paths
        self._config_path = Path(request.config_path)
        write_config_in_force(self._options.state_dir, self._config)
        # A model that was replaced stays ready all along; a new one is, or the change would have failed.
        now = ModelState(Phase.READY, "", time.time() - self._started_at)
        self._models = {name: self._models.get(name, now) for name in self._config.models}
        self._look()
        say("", ChangePhase.DONE)

    def _pause(self) -> None:
        """A moment in the middle of a change. Raises `ChangeError` if the cluster is to stop."""
        self._look()
        if self._stop.wait(POLL_S):
            raise ChangeError("the cluster is being stopped")

    def _look(self) -> None:
        """Observe; a cluster that serves is not taken down because Serve's controller is away for a moment."""
        try:
            self._observe()
        except Exception:
            now = time.monotonic()
            if self._blind_since is None:
                self._blind_since = now
                _log.warning("the state of the cluster cannot be asked for", exc_info=True)
            if now - self._blind_since >= BLIND_S:
                raise
        else:
            self._blind_since = None

    def _observe(self) -> None:
        status = serve.status()
        for name in self._config.models:
            application = status.applications.get(self._applications[name])
            pools = status.applications.get(pools_application_name(self._applications[name]))
            failed = pools is not None and pools.status is ApplicationStatus.DEPLOY_FAILED
            waits = application is not None and application.status is ApplicationStatus.DEPLOYING
            if pools is not None and (failed or (waits and pools.status is not ApplicationStatus.RUNNING)):
                now = ApplicationStatus.DEPLOY_FAILED if failed else ApplicationStatus.DEPLOYING
                self._models[name] = self._model_state(name, now, of_pools(pools))
            elif application is not None:
                self._models[name] = self._model_state(name, application.status, cause(application))
        ingress = status.applications.get(INGRESS_APPLICATION)
        phases = {state.phase for state in self._models.values()}
        if ingress is None or ingress.status is not ApplicationStatus.RUNNING:
            failed = ingress is not None and ingress.status is ApplicationStatus.DEPLOY_FAILED
            self._write(
                Phase.FAILED if failed else Phase.STARTING,
                f"ingress: {short(cause(ingress))}" if failed and ingress is not None else "starting the ingress",
            )
            return
        if Phase.STARTING in phases:
            phase = Phase.STARTING
        elif phases == {Phase.READY}:
            phase = Phase.READY
        else:
            phase = Phase.DEGRADED if Phase.READY in phases else Phase.FAILED
        if phase is not Phase.STARTING and self._ready_after is None:
            self._ready_after = time.time() - self._started_at
        self._write(phase, "")

    def _model_state(self, name: str, status: ApplicationStatus, message: str) -> ModelState:
        previous = self._models[name]
        if status is ApplicationStatus.RUNNING:
            if previous.phase is Phase.READY:
                return previous
            after = previous.ready_after_s
            return ModelState(Phase.READY, "", after if after is not None else time.time() - self._started_at)
        if status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
            return ModelState(Phase.FAILED, short(message), previous.ready_after_s)
        return ModelState(Phase.STARTING, short(message), previous.ready_after_s)

    def _write(self, phase: Phase, message: str) -> None:
        config = self._config
        state = ClusterState(
            cluster_id=self._cluster_id,
            pid=os.getpid(),
            config_path=str(self._config_path),
            host=config.ingress.host,
            port=config.ingress.port,
            phase=phase,
            started_at=self._started_at,
            message=message,
            ray_address=self._ray_address,
            ray_temp_dir=self._ray_temp_dir,
            ready_after_s=self._ready_after,
            models=dict(self._models),
            stop_s=self._stop_s,
        )
        try:
            write_state(self._options.state_dir, state)
        except OSError as error:
            # A full disk is no reason to take down a cluster that serves.
            _log.error("the state file cannot be written: %s", Safe(error.strerror or type(error).__name__))

    def _take_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stop.set()

    def _shut_down(self, cluster: RayCluster, guard: Guard) -> None:
        self._write(Phase.STOPPING, "stopping")
        ours = [INGRESS_APPLICATION]
        for name, application in self._applications.items():
            ours += applications_of(application, self._config.models[name])
        told = (self._drain_s, ours, self._config.ingress.lame_duck_s)
        graceful = threading.Thread(target=cluster.stop, args=told, name="graceful-stop", daemon=True)
        graceful.start()
        # Whatever hangs on the way down, the processes end: the graceful way has this long.
        graceful.join(self._stop_s)
        attempt("end the guard", guard.close)
        attempt("end what is left", self._sweep)
        attempt("remove Ray's directory", cluster.remove_temporary)
        attempt("remove what pools left", lambda: remove_pools_folder(self._options.state_dir))
        attempt("settle the state file", self._settle)

    @property
    def _drain_s(self) -> float:
        return max((model.replicas.drain_timeout_s for model in self._config.models.values()), default=0.0)

    @property
    def _stop_s(self) -> float:
        return self._config.ingress.lame_duck_s + self._drain_s + STOP_S

    def _sweep(self) -> None:
        leftovers = processes_of(self._cluster_id)
        if leftovers:
            _log.warning("ending %d processes that did not end by themselves", len(leftovers))
            kill_all(leftovers, KILL_GRACE_S)

    def _settle(self) -> None:
        if self._failure is None:
            remove_state(self._options.state_dir)
        else:
            # Left behind for `pointsman up` and `pointsman status` to show.
            self._write(Phase.FAILED, self._failure)
