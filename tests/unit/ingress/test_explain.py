"""The routing decision over HTTP: asked for, explained, and bounded by the operator."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cluster.routing.scorers import scorer_names
from tests.unit.ingress.bare_ingress import BareIngress, bare_ingress
from tests.unit.ingress.test_app import CANARY, CHAT, chat, config

ROUTE = "/v1/route"


@pytest.fixture
async def ingress(state_dir: Path) -> AsyncIterator[BareIngress]:
    async with bare_ingress(config(), state_dir) as made:
        yield made


async def test_a_decision_is_explained_and_no_model_runs(ingress: BareIngress) -> None:
    reply = await ingress.post(ROUTE, chat(model="auto", messages=[{"role": "user", "content": CANARY}]))
    assert reply.status == 200
    route: dict[str, Any] = json.loads(reply.body)
    assert (route["object"], route["model"], route["rule"]) == ("route", "mini", "auto_fast")
    assert {score["name"] for score in route["candidates"][0]["scores"]} == set(scorer_names())
    assert route["signals"]["retrieval_confidence"] == "missing"
    assert CANARY not in reply.body.decode()
    assert all(client.calls == [] for name, client in ingress.clients.items() if name != "encoder")


async def test_what_the_decision_says_is_what_happens(ingress: BareIngress) -> None:
    body = chat(model="auto", max_tokens=None, pointsman={"retrieval_confidence": 0.2, "business_critical": True})
    route = json.loads((await ingress.post(ROUTE, body)).body)
    assert route["sampling"] == {"mode": "deterministic", "rule": "critical", "strict": True}
    reply = await ingress.post(CHAT, body)
    said = json.loads(reply.body)["pointsman"]
    assert (said["model"], said["rule"], said["reason"]) == (route["model"], "auto_low_retrieval", route["reason"])
    assert 0 < said["score"] <= 1
    (call,) = ingress.clients[route["model"]].calls
    assert call.request.body["temperature"] == 0
    assert "pointsman" not in call.request.body


async def test_business_critical_output_is_not_sampled(ingress: BareIngress) -> None:
    reply = await ingress.post(CHAT, chat(temperature=0.7, pointsman={"business_critical": True}))
    assert (reply.status, reply.error["param"]) == (400, "temperature")
    assert "rule critical samples deterministically" in reply.error["message"]


async def test_knobs_that_the_operator_keeps_are_refused(state_dir: Path) -> None:
    made = config()
    routing = made.routing.model_copy(update={"knobs": made.routing.knobs.model_copy(update={"latency_class": False})})
    async with bare_ingress(config(routing=routing), state_dir) as ingress:
        for path in (ROUTE, CHAT):
            reply = await ingress.post(path, chat(pointsman={"latency_class": "batch"}))
            assert (reply.status, reply.error["param"]) == (400, "pointsman.latency_class")


async def test_the_route_asks_for_a_body_that_chat_would_take(ingress: BareIngress) -> None:
    assert (await ingress.request("GET", ROUTE)).status == 405
    assert (await ingress.post(ROUTE, b"{")).status == 400
    assert (await ingress.post(ROUTE, chat(model=CANARY))).status == 404


async def test_two_stages_are_explained_by_who_finds_the_facts(ingress: BareIngress) -> None:
    body = chat(model="auto", pointsman={"two_stage": True})
    route = json.loads((await ingress.post(ROUTE, body)).body)
    facts = ingress.services.config.models_of(ingress.services.config.routing.feedback.facts_role)
    assert route["model"] == facts[0]
    refused = await ingress.post(ROUTE, {**body, "n": 2})
    assert (refused.status, refused.error["param"]) == (400, "pointsman.two_stage")


async def test_what_the_contract_refuses_is_refused(ingress: BareIngress) -> None:
    for more in (
        {"max_tokens": 100_000},
        {"temperature": 0.7, "pointsman": {"business_critical": True}},
        {"pointsman": {"verify": {"regex": "(?=a)b"}}},
    ):
        said = [await ingress.post(path, chat(**more)) for path in (ROUTE, CHAT)]
        assert said[0].status == 400
        assert said[0].error == said[1].error
