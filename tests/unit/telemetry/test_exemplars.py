"""Which requests the ingress shows as examples of its latencies, and to whom."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from cluster.config.load import parse_config
from deployments.telemetry.exposition import Exposition
from deployments.telemetry.series import TRACE_ID
from tests.unit.ingress.bare_ingress import BareIngress, bare_ingress

ROOT = Path(__file__).parents[3]
CHAT = "/v1/chat/completions"
CLAIMED = "4bf92f3577b34da6a3ce929d0e0e4736"
OPENMETRICS = "application/openmetrics-text;version=1.0.0,*/*;q=0.1"
BODY = {"model": "strong", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}


def config(more: str = ""):
    return parse_config((ROOT / "infra" / "clusters" / "local.yaml").read_text() + more, "local.yaml")


@pytest.fixture
async def ingress(state_dir: Path) -> AsyncIterator[BareIngress]:
    async with bare_ingress(config(), state_dir) as made:
        yield made


def traceparent(flags: str) -> str:
    return f"00-{CLAIMED}-00f067aa0ba902b7-{flags}"


async def shown(ingress: BareIngress) -> set[str]:
    """Traces that `/metrics` points to."""
    reply = await ingress.request("GET", "/metrics", accept=OPENMETRICS)
    assert reply.headers["content-type"] == Exposition.OPENMETRICS.content_type
    families = text_string_to_metric_families(reply.body.decode())
    samples = [sample for family in families for sample in family.samples]
    return {sample.exemplar.labels[TRACE_ID] for sample in samples if sample.exemplar is not None}


async def test_an_answered_request_is_shown_by_the_trace_that_its_answer_names(ingress: BareIngress) -> None:
    reply = await ingress.post(CHAT, BODY)
    assert await shown(ingress) == {reply.headers["x-pointsman-trace-id"]}


async def test_a_trusted_caller_s_own_trace_is_shown_if_it_is_recorded(ingress: BareIngress) -> None:
    await ingress.post(CHAT, BODY, traceparent=traceparent("00"))
    assert await shown(ingress) == set()
    await ingress.post(CHAT, BODY, traceparent=traceparent("01"))
    assert await shown(ingress) == {CLAIMED}


async def test_a_stranger_puts_nothing_into_metrics(state_dir: Path) -> None:
    async with bare_ingress(config("\nkeys: {required: true}\n"), state_dir) as made:
        reply = await made.post(CHAT, BODY, traceparent=traceparent("01"))
        assert reply.status == 401
        assert (await made.request("GET", "/metrics", accept=OPENMETRICS)).status == 401
        assert CLAIMED not in made.services.metrics.render(Exposition.OPENMETRICS).decode()


async def test_who_does_not_ask_for_openmetrics_gets_plain_text(ingress: BareIngress) -> None:
    await ingress.post(CHAT, BODY)
    for headers in ({}, {"accept": "*/*"}, {"accept": "text/plain"}):
        reply = await ingress.request("GET", "/metrics", **headers)
        assert reply.headers["content-type"] == Exposition.PLAIN.content_type
        assert b"# EOF" not in reply.body
        assert b"trace_id" not in reply.body
