"""When a running cluster takes a changed config."""

from __future__ import annotations

import json

import msgspec
import pytest

from cluster.config.load import parse_config
from deployments.head.state import ModelState, Phase, write_config_in_force, write_state

STARTING_AGAIN = {"large": ModelState(Phase.READY, "", 12.5), "small": ModelState(Phase.STARTING, "", 20.0)}


@pytest.fixture
def in_force(state_dir, running, config_file):
    """A cluster in which the config file is in force."""
    write_config_in_force(state_dir, parse_config(config_file.read_text(), "cluster.yaml"))
    return running


@pytest.mark.parametrize(
    ("phase", "ready_after_s", "exit_code"),
    [
        (Phase.READY, 20.0, 0),
        (Phase.DEGRADED, 20.0, 0),
        # Serve starts replicas of a model that is scaled or heals; the cluster serves all the same.
        (Phase.STARTING, 20.0, 0),
        (Phase.STARTING, None, 3),
        (Phase.STOPPING, 20.0, 3),
    ],
)
def test_a_cluster_takes_a_config_once_it_has_served(
    invoke, in_force, state_dir, config_file, phase, ready_after_s, exit_code
):
    changed = {"phase": phase, "ready_after_s": ready_after_s, "models": STARTING_AGAIN}
    write_state(state_dir, msgspec.structs.replace(in_force, **changed))
    done = invoke("config", "apply", str(config_file), "--dry-run", "--json")
    assert done.exit_code == exit_code, done.output
    if exit_code == 0:
        assert json.loads(done.stdout)["changes"] == []
    else:
        assert f"the cluster is {phase.value}" in done.stderr
