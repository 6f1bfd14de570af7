"""`python -m deployments.head`: the head process. `pointsman up` starts it; it is not meant to be typed."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import uuid
from pathlib import Path

from cluster.config.load import ConfigError, parse_config
from deployments.head.environment import is_at_loopback, ray_environment
from deployments.head.ports import PortInUseError
from deployments.head.state import AlreadyRunningError
from deployments.paths import logs_path
from deployments.telemetry.logs import setup_logging

EXIT_USAGE = 2
EXIT_REFUSED = 3
EXIT_FAILED = 1


def _say(message: str) -> None:
    """For `pointsman up`, which shows what the head printed before it ended."""
    sys.stderr.write(f"{message}\n")


def main() -> int:
    """Runs until the cluster is stopped; returns the exit status."""
    parser = argparse.ArgumentParser(prog="pointsman-head")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--model-paths", type=json.loads, required=True, help="JSON object: folder of each checkpoint")
    arguments = parser.parse_args()
    try:
        config = parse_config(arguments.config.read_text(), str(arguments.config))
    except (ConfigError, OSError) as error:
        _say(str(error))
        return EXIT_USAGE
    logs = setup_logging("head", logs_path(arguments.state_dir), level=config.telemetry.log_level)
    paths = {name: Path(path) if path is not None else None for name, path in arguments.model_paths.items()}
    cluster_id = uuid.uuid4().hex
    os.environ.update(ray_environment(cluster_id, is_at_loopback(config.ray.address)))
    # Only now: Ray reads its environment when it is imported.
    from deployments.head.head import Head, HeadOptions

    head = Head(HeadOptions(cluster_id, config, arguments.config, arguments.state_dir, paths))
    try:
        head.run()
    except (AlreadyRunningError, PortInUseError) as error:
        _say(str(error))
        return EXIT_REFUSED
    except Exception as error:  # noqa: BLE001 - the last one who can tell the person at the terminal
        _say(f"the cluster could not start: {type(error).__name__}: {error}")
        return EXIT_FAILED
    finally:
        logging.shutdown()
        logs.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
