"""Models without a replica while nobody asks for them: who is parked, who wakes them, and what callers are told meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cluster.config.cluster import ClusterConfig
from cluster.config.load import parse_config
from deployments.ingress.waking import FIRST_GUESS_S, Waking
from tests.unit.ingress.bare_ingress import BareIngress, bare_ingress

ROOT = Path(__file__).parents[3]
CHAT = "/v1/chat/completions"
LIMIT_S = 90.0


def config() -> ClusterConfig:
    made = parse_config((ROOT / "infra" / "clusters" / "local.yaml").read_text(), "local.yaml")
    sparse = made.models["sparse"]
    replicas = sparse.replicas.model_copy(update={"min": 0, "start_timeout_s": LIMIT_S})
    return made.model_copy(
        update={"models": {**made.models, "sparse": sparse.model_copy(update={"replicas": replicas})}}
    )


@pytest.fixture
async def ingress(state_dir: Path) -> AsyncIterator[BareIngress]:
    async with bare_ingress(config(), state_dir) as made:
        made.clients["sparse"].up = False
        yield made


def chat(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}


async def test_a_parked_model_that_is_asked_for_is_started_and_others_answer_meanwhile(ingress: BareIngress) -> None:
    reply = await ingress.post(CHAT, chat("sparse"))
    # Its contract names a fallback.
    assert (reply.status, reply.headers["x-pointsman-model"]) == (200, "dense")
    assert ingress.clients["sparse"].woken == [LIMIT_S]
    assert "sparse is not ready (parked, and started when it is asked for)" in reply.headers["x-pointsman-reason"]
    again = await ingress.post(CHAT, chat("sparse"))
    assert "sparse is not ready (being started)" in again.headers["x-pointsman-reason"]


async def test_where_nobody_can_stand_in_the_caller_is_told_when_to_come_back(ingress: BareIngress) -> None:
    for client in ingress.clients.values():
        client.up = False
    reply = await ingress.post(CHAT, chat("sparse"))
    assert (reply.status, reply.error["code"]) == (503, "model_starting")
    assert 0 < int(reply.headers["retry-after"]) <= FIRST_GUESS_S
    assert ingress.clients["sparse"].woken


async def test_a_dry_run_and_requests_for_others_start_nothing(ingress: BareIngress) -> None:
    assert (await ingress.post("/v1/route", chat("sparse"))).status == 200
    assert (await ingress.post(CHAT, chat("dense"))).status == 200
    assert ingress.clients["sparse"].woken == []


async def test_the_cluster_is_ready_without_it(ingress: BareIngress) -> None:
    reply = await ingress.request("GET", "/readyz")
    assert reply.status == 200
    ingress.clients["mini"].up = False
    assert (await ingress.request("GET", "/readyz")).status == 503


def test_a_start_is_expected_to_last_as_long_as_the_last_one() -> None:
    clock = [0.0]
    waking = Waking(lambda: clock[0])

    class Client:
        woken = 0

        def wake(self, _limit_s: float) -> None:
            self.woken += 1

    client: Any = Client()
    waking.follow(config().models, {"sparse": client})
    assert waking.state("dense") is None
    state = waking.state("sparse")
    assert state is not None and (state.parked, state.start_s) == (True, FIRST_GUESS_S)
    waking.wake(("sparse", "dense"))
    clock[0] = 20.0
    state = waking.state("sparse")
    assert state is not None and (state.reason, state.start_s) == ("being started", FIRST_GUESS_S - 20)
    waking.ready("sparse")
    state = waking.state("sparse")
    assert state is not None and state.start_s == 20.0
    # It is parked again; a start that fails is given up after its limit, and begun anew.
    clock[0] = 100.0
    waking.wake(["sparse"])
    clock[0] = 150.0
    state = waking.state("sparse")
    assert state is not None and state.start_s == 1.0
    clock[0] = 100.0 + LIMIT_S + 1
    waking.wake(["sparse"])
    state = waking.state("sparse")
    assert state is not None and state.start_s == 20.0
    assert client.woken == 3
