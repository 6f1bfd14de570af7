"""Brings a new config into force in a running cluster, so that no request is lost: new before old, and back if new fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ray import serve
from ray.serve.schema import ApplicationStatus

from cluster.config.changes import ChangePlan, Way, plan_changes
from cluster.config.cluster import ClusterConfig
from cluster.config.in_force import in_force
from deployments.head.applications import ingress_application, run_application, run_model
from deployments.head.reasons import cause, of_pools, short
from deployments.names import (
    INGRESS_APPLICATION,
    later_application_name,
    model_application_name,
    pools_application_name,
)
from deployments.telemetry.log_safety import Safe

_log = logging.getLogger(__name__)

INGRESS_S = 60.0
"""Seconds that the ingresses may take to be at the new config."""

_FAILED = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)


class ChangeError(RuntimeError):
    """The new config is not in force, the old one still is. The message says why."""


@dataclass(frozen=True, slots=True)
class Running:
    """What runs: a config, and the Serve application of each of its models."""

    config: ClusterConfig
    applications: Mapping[str, str]
    """Serve application by model."""


class Changer:
    """Makes one change after the other. `pause` waits a moment, in which the head looks after the cluster; it raises to stop."""

    def __init__(self, started_with: ClusterConfig, state_dir: Path, pause: Callable[[], None]) -> None:
        self._started_with = started_with
        self._state_dir = state_dir
        self._pause = pause
        self._generation = dict.fromkeys(started_with.models, 1)

    def change(
        self,
        running: Running,
        new: ClusterConfig,
        model_paths: Mapping[str, Path | None],
        timeout_s: float,
        say: Callable[[str], None],
    ) -> Running:
        """Bring `new` into force; returns what runs then. Raises `ChangeError`."""
        plan = plan_changes(running.config, new)
        if plan.refused:
            names = ", ".join(step.change.path for step in plan.refused)
            raise ChangeError(f"{names}: only `pointsman down` and `pointsman up` bring this into force")
        fresh = self._start(plan, new, model_paths, timeout_s, say)
        scaled: list[str] = []
        try:
            then = Running(new, {name: fresh.get(name) or running.applications[name] for name in new.models})
            say("the ingress takes it on")
            self._tell_ingress(then)
            for name in plan.models(Way.SCALE):
                say(f"{name}: scaling")
                scaled.append(name)
                self._run_model(name, then, model_paths)
        except BaseException:
            self._go_back(running, scaled, model_paths)
            self._delete(fresh.values())
            raise
        gone = [name for model, name in running.applications.items() if then.applications.get(model) != name]
        if gone:
            say("what was replaced finishes its requests")
            self._delete(gone)
        return then

    def _go_back(self, running: Running, scaled: Iterable[str], model_paths: Mapping[str, Path | None]) -> None:
        """Bring the config before into force again, as far as that can be done."""
        steps: list[tuple[str, Callable[[], None]]] = [("the ingress", lambda: self._tell_ingress(running))]
        steps += [(name, partial(self._run_model, name, running, model_paths)) for name in scaled]
        for what, step in steps:
            try:
                step()
            except Exception as error:  # noqa: BLE001 - each of them is worth trying
                _log.error("%s does not go back to the config before: %s", Safe(what), Safe(str(error)))

    def _run_model(self, name: str, running: Running, model_paths: Mapping[str, Path | None]) -> None:
        """Hand a model's application to Serve as it is in `running`."""
        # Its path is known to the replicas alone; those that start later read it from the application, too.
        run_model(name, running.config, model_paths.get(name), self._state_dir, running.applications[name])

    def _start(
        self,
        plan: ChangePlan,
        new: ClusterConfig,
        paths: Mapping[str, Path | None],
        timeout_s: float,
        say: Callable[[str], None],
    ) -> dict[str, str]:
        """Load what is new, beside what is old; all of it or nothing."""
        fresh: dict[str, str] = {}
        try:
            for model in (*plan.models(Way.ADD), *plan.models(Way.REPLACE)):
                self._generation[model] = self._generation.get(model, 0) + 1
                generation = self._generation[model]
                name = model_application_name(model) if generation == 1 else later_application_name(model, generation)
                fresh[model] = name
                say(f"{model}: loading")
                run_model(model, new, paths.get(model), self._state_dir, name)
                self._wait(name, model, timeout_s)
        except BaseException:
            self._delete(fresh.values())
            raise
        return fresh

    def _wait(self, application: str, what: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            applications = serve.status().applications
            found, pools = applications.get(application), applications.get(pools_application_name(application))
            if found is not None and found.status is ApplicationStatus.RUNNING:
                return
            if pools is not None and pools.status is ApplicationStatus.DEPLOY_FAILED:
                raise ChangeError(f"{what}: {short(of_pools(pools))}")
            if found is not None and found.status in _FAILED:
                raise ChangeError(f"{what}: {short(cause(found))}")
            if time.monotonic() > deadline:
                why = short(cause(found)) if found is not None else ""
                if pools is not None and pools.status is not ApplicationStatus.RUNNING:
                    why = short(of_pools(pools))
                room = "both the old and the new replicas must fit into what Ray has (`cpus`, `gpus`, memory)"
                raise ChangeError(f"{what} was not ready after {timeout_s:g} s{f' ({why})' if why else ''}; {room}")
            self._pause()

    def _tell_ingress(self, running: Running) -> None:
        told = {"config": in_force(running.config), "applications": dict(running.applications)}
        run_application(INGRESS_APPLICATION, ingress_application(self._started_with, self._state_dir, told))
        self._wait(INGRESS_APPLICATION, "the ingress", INGRESS_S)

    def _delete(self, applications: Iterable[str]) -> None:
        """Have applications end, and the pools of those that have some: these wait for their trunks by themselves."""
        for name in applications:
            for one in (name, pools_application_name(name)):
                try:
                    if one in serve.status().applications:
                        serve.delete(one, _blocking=False)
                except Exception:  # noqa: BLE001 - it may be gone already; what it holds is seen in `status`
                    _log.exception("a Serve application cannot be deleted", extra={"application": one})
