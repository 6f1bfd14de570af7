"""Makes and revokes keys as an operator does."""

from __future__ import annotations

import json
from dataclasses import dataclass

from tests.clusters import RunningCluster
from tests.integration.cluster_processes import wait_for

TAKEN_OVER_S = 3.0
"""Within this many seconds a running cluster knows of a change of keys: three times the second that it promises."""


@dataclass(frozen=True)
class Key:
    """A key and its public id."""

    key: str
    id: str


def add_key(cluster: RunningCluster, name: str, *options: str) -> Key:
    """A key that the cluster takes. Fails if it does not within `TAKEN_OVER_S`."""
    done = cluster.pointsman("keys", "add", name, "--json", *options)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    key = Key(made["key"], made["id"])
    wait_for(lambda: status(cluster, key) == 200, TAKEN_OVER_S)
    return key


def revoke_key(cluster: RunningCluster, key: Key) -> None:
    """Revoke a key and see that the cluster refuses it within `TAKEN_OVER_S`."""
    done = cluster.pointsman("keys", "revoke", key.id)
    assert done.returncode == 0, done.stderr
    wait_for(lambda: status(cluster, key) == 401, TAKEN_OVER_S)


def status(cluster: RunningCluster, key: Key) -> int:
    """What the cluster answers to a request with the key."""
    with cluster.client(key=key.key) as client:
        return client.get("/v1/models").status_code
