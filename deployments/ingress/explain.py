"""`POST /v1/route`: the decision about a chat request, without running it."""

from __future__ import annotations

import json

from cluster.api.chat import ChatRequest, parse_chat
from cluster.api.json_body import parse_json
from cluster.keys import KeyRecord
from cluster.routing.explanation import explanation
from deployments.ingress.body import BodyReader
from deployments.ingress.choosing import Choosing
from deployments.ingress.exchange import Exchange
from deployments.ingress.services import Services
from deployments.ingress.verification import Verification


class RoutePage:
    """Handler of one ingress. Takes what `/v1/chat/completions` takes, and counts as a request of its key."""

    def __init__(self, services: Services, bodies: BodyReader) -> None:
        self._services = services
        self._bodies = bodies
        self._choosing = Choosing(services)
        self._verification = Verification(services)

    async def serve(self, exchange: Exchange, key: KeyRecord | None) -> None:
        """The decision with every candidate and score. Raises `ApiError` for what the chat route would refuse, too."""
        services = self._services
        limits = services.config.ingress.limits

        def parse(body: bytes) -> ChatRequest:
            exchange.body_read = True
            return parse_chat(parse_json(body, limits), limits)

        with services.gate.reading(key):
            request = await self._bodies.read(exchange.scope, exchange.receive, parse)
        async with services.gate.admit(key, 0) as admission:
            exchange.headers |= admission.headers
            chosen = await self._choosing.first(request, explain=True)
            self._choosing.bind(request, chosen.decision)
            await self._verification.prepare(request.knobs.verify)
            await exchange.respond(200, json.dumps(explanation(chosen.decision, chosen.signals)).encode())
