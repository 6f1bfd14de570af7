"""The ASGI application of the ingress: what every request passes through, and the routes."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from cluster.api.errors import ApiError
from cluster.keys import KeyRecord
from deployments.channel.stream import SlowReaderError
from deployments.engines.protocol import Endpoint
from deployments.ingress import info
from deployments.ingress.body import BodyReader, ClientGoneError
from deployments.ingress.exchange import Exchange
from deployments.ingress.experts_page import ExpertsPage
from deployments.ingress.explain import RoutePage
from deployments.ingress.failures import error_event
from deployments.ingress.generate import Generation
from deployments.ingress.precision_page import PrecisionPage
from deployments.ingress.services import Services
from deployments.ingress.tracing import request_span

_log = logging.getLogger(__name__)

Handler = Callable[[Exchange, KeyRecord | None], Awaitable[None]]

PUBLIC_PATHS = frozenset({"/livez", "/readyz"})
"""The only routes that ask for no key. Everything else does, also what does not exist."""

GENERATION_PATHS: Mapping[str, Endpoint] = {
    "/v1/chat/completions": Endpoint.CHAT,
    "/v1/completions": Endpoint.COMPLETION,
    "/v1/embeddings": Endpoint.EMBEDDING,
}

STRANGER_TRACE_PERIOD_S = 0.2
"""Seconds between two traces of requests without a valid key, at least."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass(slots=True)
class InFlight:
    """Requests in flight in one ingress process."""

    requests: int = 0


class IngressApp:
    """One ingress's ASGI application."""

    def __init__(self, services: Services, in_flight: InFlight | None = None) -> None:
        """`in_flight` is what an application that this one takes over from has under way."""
        self._services = services
        self._in_flight = in_flight or InFlight()
        self._stranger_traced = -STRANGER_TRACE_PERIOD_S
        self._bodies = BodyReader(services.config.ingress.limits)
        pages = info.InfoPages(services)
        self._routes: dict[str, tuple[str, Handler]] = {
            "/livez": ("GET", pages.live),
            "/readyz": ("GET", pages.ready),
            "/metrics": ("GET", pages.metrics),
            "/v1/models": ("GET", pages.models),
            "/v1/models/*": ("GET", pages.model),
            "/v1/usage": ("GET", pages.usage),
            "/v1/precision": ("GET", PrecisionPage(services).serve),
            "/v1/experts": ("GET", ExpertsPage(services).serve),
        }
        self._routes["/v1/route"] = ("POST", RoutePage(services, self._bodies).serve)
        for path, endpoint in GENERATION_PATHS.items():
            self._routes[path] = ("POST", self._generation(endpoint))

    def with_services(self, services: Services) -> IngressApp:
        """The application that takes over: requests under way keep this one, and count there."""
        return IngressApp(services, self._in_flight)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; never raises but for cancellation."""
        if scope["type"] != "http":
            return
        limits = self._services.config.ingress.limits
        exchange = Exchange(scope, receive, send, limits.slow_client_timeout_s)
        exchange.request_id = _request_id(exchange)
        exchange.headers["x-request-id"] = exchange.request_id
        self._in_flight.requests += 1
        try:
            await self._serve(exchange)
        except ApiError as error:
            await self._refuse(exchange, error)
        except (ClientGoneError, ConnectionError, SlowReaderError):
            self._note_gone(scope)
        except asyncio.CancelledError:
            # The client's disconnect is what cancels handlers; there is nobody left to answer.
            self._note_gone(scope)
        except Exception:  # noqa: BLE001 - one request's failure is one error answer, whatever it was
            _log.exception("a request failed in the ingress", extra={"request_id": exchange.request_id})
            await self._refuse(
                exchange, ApiError(500, "internal_error", "The ingress failed; see its log.", type="server_error")
            )
        finally:
            self._in_flight.requests -= 1

    async def _serve(self, exchange: Exchange) -> None:
        services, scope = self._services, exchange.scope
        limits = services.config.ingress.limits
        if len(scope["headers"]) > limits.header_count:
            raise ApiError(431, "too_many_headers", f"The request has more than {limits.header_count} headers.")
        if _head_bytes(scope) > limits.header_bytes:
            raise ApiError(431, "headers_too_large", f"The headers exceed {limits.header_bytes} bytes.")
        path = scope["path"]
        try:
            key = None if path in PUBLIC_PATHS else services.gate.authenticate(exchange.header("authorization"))
        except ApiError as error:
            self._trace_stranger(exchange, error)
            raise
        route = self._routes.get("/v1/models/*" if path.startswith("/v1/models/") else path)
        if route is None:
            known = ", ".join(sorted(self._routes))
            raise ApiError(404, "unknown_path", f"There is nothing at this path. There is: {known}.")
        method, handler = route
        if scope["method"] != method and not (method == "GET" and scope["method"] == "HEAD"):
            raise ApiError(405, "method_not_allowed", f"This path takes {method}.", headers={"allow": method})
        await handler(exchange, key)

    def _trace_stranger(self, exchange: Exchange, error: ApiError) -> None:
        """A trace of its own for a request without a valid key, with a link to the one that it claims.

        A few a second at most: strangers must not be able to crowd everybody's traces out of the store.
        """
        endpoint = GENERATION_PATHS.get(exchange.scope["path"])
        now = time.monotonic()
        if endpoint is None or now - self._stranger_traced < STRANGER_TRACE_PERIOD_S:
            return
        self._stranger_traced = now
        headers = exchange.scope["headers"]
        with request_span(self._services.telemetry, headers, False, endpoint, exchange.request_id) as span:
            exchange.headers["x-pointsman-trace-id"] = span.trace_id
            span.refused(error)

    def _generation(self, endpoint: Endpoint) -> Handler:
        services = self._services
        generation = Generation(services, endpoint, self._bodies)
        limit = services.config.ingress.limits.max_concurrent_requests

        async def serve(exchange: Exchange, key: KeyRecord | None) -> None:
            trusted = key is not None or services.trusted
            with (
                request_span(
                    services.telemetry, exchange.scope["headers"], trusted, endpoint, exchange.request_id
                ) as span,
                services.metrics.in_flight(endpoint),
            ):
                exchange.headers["x-pointsman-trace-id"] = span.trace_id
                if key is not None:
                    span.caller(key)
                try:
                    if self._in_flight.requests > limit:
                        raise ApiError(
                            503,
                            "overloaded",
                            f"The ingress has {limit} requests in flight, its limit; try again in a moment.",
                            type="server_error",
                            headers={"retry-after": "1"},
                        )
                    await generation.serve(exchange, key, span)
                except ApiError as error:
                    span.refused(error)
                    services.metrics.refused(endpoint, error.status, error.code)
                    services.gate.refused(key)
                    raise
                except BaseException as error:
                    span.failed(error)
                    raise

        return serve

    async def _refuse(self, exchange: Exchange, error: ApiError) -> None:
        try:
            if exchange.status == 0:
                await exchange.refuse(error)
            elif exchange.streaming:
                # The head is out, so the status cannot change any more: the stream says what happened, without `[DONE]`.
                await exchange.write(error_event(error.body()), last=True)
            # A whole answer has told its length: the server closes the connection, and the client sees it cut.
        except (ClientGoneError, ConnectionError, asyncio.CancelledError):
            self._note_gone(exchange.scope)

    def _note_gone(self, scope: Scope) -> None:
        endpoint = GENERATION_PATHS.get(scope["path"])
        if endpoint is not None:
            self._services.metrics.disconnected(endpoint)


def _head_bytes(scope: Scope) -> int:
    """Bytes of the request's head, but for the few of its first line that are not the target."""
    target = len(scope["raw_path"]) + len(scope["query_string"])
    return target + sum(len(name) + len(value) + 4 for name, value in scope["headers"])


def _request_id(exchange: Exchange) -> str:
    """The caller's `x-request-id` if it is one and fit to be written into logs, else a new one."""
    given = exchange.header("x-request-id")
    if len(given) == 1 and _REQUEST_ID.fullmatch(given[0]):
        return given[0]
    return uuid.uuid4().hex
