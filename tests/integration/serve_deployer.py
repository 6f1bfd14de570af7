"""Deploys rendered Serve configs onto a local Ray with Ray's own client. Run as a process of its own: Ray reads its environment early.

    python tests/integration/serve_deployer.py CONFIG STATE_DIR < paths of Serve configs, one a line

Every line is deployed in the place of the one before, and answered by `deployed`. At the end of the input all is stopped.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import yaml

from cluster.config.load import parse_config
from deployments.head.environment import ray_environment
from deployments.processes import adopt_orphans, kill_all, processes_of

DRAIN_S = 20.0


def main() -> None:
    config = parse_config(Path(sys.argv[1]).read_text(encoding="utf-8"), sys.argv[1])
    cluster_id = f"rendered{os.getpid()}"
    os.environ.update(ray_environment(cluster_id, True))
    os.environ["POINTSMAN_STATE_DIR"] = sys.argv[2]
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    from deployments.head.ray_cluster import RayCluster

    adopt_orphans()
    cluster = RayCluster(config.ray)
    names: set[str] = set()
    try:
        cluster.start()
        cluster.start_serve()
        for line in sys.stdin:
            schema = ServeDeploySchema.model_validate(yaml.safe_load(Path(line.strip()).read_text(encoding="utf-8")))
            names |= {application.name for application in schema.applications}
            _get_global_client().deploy_apps(schema)
            sys.stdout.write("deployed\n")
            sys.stdout.flush()
    finally:
        cluster.stop(DRAIN_S, names)
        kill_all(processes_of(cluster_id), 2.0)
        cluster.remove_temporary()


if __name__ == "__main__":
    main()
