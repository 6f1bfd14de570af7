"""What must be in the environment before Ray is imported. Ray's processes, and through them all actors, inherit it."""

from __future__ import annotations

from cluster.config.host import is_loopback
from deployments.processes import CLUSTER_VARIABLE


def is_at_loopback(ray_address: str | None) -> bool:
    """Whether a Ray cluster is reached at this machine alone: one of our own (None), or one that listens at loopback."""
    return ray_address is None or is_loopback(ray_address.rpartition(":")[0])


def ray_environment(cluster_id: str, at_loopback: bool) -> dict[str, str]:
    """The variables. `at_loopback` says that the Ray cluster is for this machine alone: see `is_at_loopback`."""
    environment = {
        CLUSTER_VARIABLE: cluster_id,
        # Ray would run actors at nice 15: every other process of the machine would come before the engines.
        "RAY_worker_niceness": "0",
        # An actor that dies takes its engine processes with it: the raylet adopts and kills what is orphaned.
        "RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "0",
        "RAY_enable_open_telemetry": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # A process that the machine cannot hold is better refused at placement than killed in service.
        "RAY_memory_monitor_refresh_ms": "0",
        # One event loop per actor: a thread hop for every call costs more than it protects on few cores.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        # Deaths are noticed by the token channel; ten rounds a second of the controller's loop only cost the engines.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "100",
    }
    if at_loopback:
        # Ray's servers listen on loopback only if that is the node's address, and Ray turns a loopback address that it
        # is given into a reachable one. This switch, made for laptops with firewalls, keeps it at loopback.
        environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    return environment
