"""The request router in the cases that stop an event loop if they are taken wrongly."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID

from deployments import router_state
from deployments.router import ChannelRouter


@pytest.mark.parametrize("attached", [True, False])
async def test_serve_waits_before_it_asks_again(monkeypatch: pytest.MonkeyPatch, attached: bool) -> None:
    told = SimpleNamespace(load=0, kv_usage=0.0, age_s=0.0) if attached else None
    monkeypatch.setattr(router_state.STATE, "channel", SimpleNamespace(told=lambda _: told))
    monkeypatch.setattr(ChannelRouter, "replica_queue_len_cache", {}, raising=False)
    router: Any = object.__new__(ChannelRouter)
    router.initialize_state()
    replica = SimpleNamespace(replica_id=ReplicaID("r1", DeploymentID("model", "model-dense")), max_ongoing_requests=4)
    pending = SimpleNamespace(args=(), routing_context=SimpleNamespace(should_backoff=False))
    chosen = await router.choose_replicas([replica], cast("Any", pending))
    assert chosen == ([[replica]] if attached else [])
    assert pending.routing_context.should_backoff
