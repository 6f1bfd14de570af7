"""The ingress's own spans: whose trace it is, what the conventions ask for, what was said only if asked for."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from cluster.config.cluster import ClusterConfig
from cluster.config.load import parse_config
from cluster.telemetry import names
from deployments.ingress import app
from deployments.paths import traces_path
from deployments.telemetry.content import CAPTURE
from deployments.telemetry.reader import TraceReader
from deployments.telemetry.setup import setup_telemetry
from deployments.telemetry.spans import StoredSpan
from tests.unit.ingress.bare_ingress import BareIngress, bare_ingress

ROOT = Path(__file__).parents[3]
CHAT = "/v1/chat/completions"
CLAIMED_TRACE, CLAIMED_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{CLAIMED_TRACE}-{CLAIMED_SPAN}-01"
SAID = "said-7f3a"


def config(*, keys: bool = False) -> ClusterConfig:
    text = (ROOT / "infra" / "clusters" / "local.yaml").read_text()
    return parse_config(text + ("\nkeys: {required: true}\n" if keys else ""), "local.yaml")


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "strong", "messages": [{"role": "user", "content": SAID}], "max_tokens": 8, **more}


async def traced(
    state_dir: Path, *requests: dict[str, Any], keys: bool = False, environ: dict[str, str] | None = None
) -> list[StoredSpan]:
    """The spans of requests that were sent one after the other, oldest first."""
    async with bare_ingress(config(keys=keys), state_dir) as made:
        telemetry = setup_telemetry(
            "ingress", made.services.config.telemetry, state_dir, environ=environ or {}, set_global=False
        )
        services = dataclasses.replace(made.services, telemetry=telemetry)
        ingress = BareIngress(services, made.clients, made.health)
        for request in requests:
            await ingress.post(CHAT, request.get("body", chat()), **request.get("headers", {}))
        assert await asyncio.to_thread(telemetry.close)
    with TraceReader(traces_path(state_dir)) as reader:
        spans = [span for trace in reader.list_traces() for span in reader.get_trace(trace.trace_id)]
    return sorted(spans, key=lambda span: span.start_ns)


async def test_the_conventions_attributes(state_dir: Path) -> None:
    body = chat(stream=True, temperature=0.5, seed=3, n=1, top_p=0.9)
    request, route = await traced(state_dir, {"body": body})
    assert (request.name, request.kind) == ("chat strong", "server")
    expected = {
        names.OPERATION: "chat",
        names.PROVIDER: "pointsman",
        names.REQUEST_MODEL: "strong",
        names.RESPONSE_MODEL: "dense",
        names.REQUEST_STREAM: True,
        names.REQUEST_MAX_TOKENS: 8,
        names.REQUEST_TEMPERATURE: 0.5,
        names.REQUEST_SEED: 3,
        names.REQUEST_TOP_P: 0.9,
        names.FINISH_REASONS: ("stop",),
        names.USAGE_INPUT_TOKENS: 7,
        names.USAGE_OUTPUT_TOKENS: 2,
        names.HTTP_STATUS: 200,
    }
    assert {name: request.attributes.get(name) for name in expected} == expected
    assert names.REQUEST_CHOICES not in request.attributes
    assert names.ERROR_TYPE not in request.attributes
    assert route.attributes[names.ROUTE_MODEL] == "dense"
    assert route.attributes[names.ROUTE_RULE]
    assert SAID not in repr((request, route))


async def test_a_refusal_names_its_code_and_no_callers_word(state_dir: Path) -> None:
    (span,) = await traced(state_dir, {"body": chat(model=SAID)})
    assert span.name == "chat"
    assert (span.attributes[names.HTTP_STATUS], span.attributes[names.ERROR_TYPE]) == (404, "model_not_found")
    assert SAID not in repr(span)


async def test_a_trusted_caller_keeps_its_trace(state_dir: Path) -> None:
    request, _ = await traced(state_dir, {"headers": {"traceparent": TRACEPARENT}})
    assert (request.trace_id, request.parent_id, request.links) == (CLAIMED_TRACE, CLAIMED_SPAN, ())


async def test_a_stranger_gets_a_new_trace_with_a_link(state_dir: Path) -> None:
    headers = {"traceparent": TRACEPARENT, "tracestate": "a=b", "baggage": f"a={SAID}"}
    (span,) = await traced(state_dir, {"headers": headers}, keys=True)
    assert span.trace_id != CLAIMED_TRACE
    assert span.parent_id is None
    assert span.attributes[names.HTTP_STATUS] == 401
    (link,) = span.links
    assert (link.trace_id, link.span_id) == (CLAIMED_TRACE, CLAIMED_SPAN)
    assert link.attributes == {names.LINK_REASON: names.LINK_UNAUTHENTICATED}
    assert SAID not in repr(span)


async def test_strangers_cannot_fill_the_store(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "STRANGER_TRACE_PERIOD_S", 3600.0)
    assert len(await traced(state_dir, *[{}] * 50, keys=True)) == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_what_was_said_is_recorded_if_asked_for(state_dir: Path, stream: bool) -> None:
    request, route = await traced(state_dir, {"body": chat(stream=stream)}, environ={CAPTURE: "span_only"})
    (asked,) = json.loads(str(request.attributes[names.INPUT_MESSAGES]))
    assert asked == {"role": "user", "parts": [{"type": "text", "content": SAID}]}
    (answered,) = json.loads(str(request.attributes[names.OUTPUT_MESSAGES]))
    assert answered["role"] == "assistant"
    if stream:
        assert answered["parts"] == [{"type": "text", "content": "word word "}]
    assert SAID not in repr(route)
