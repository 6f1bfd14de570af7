"""Follows changes of the config: what one ingress is made of under each, and the moment at which the next one takes over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from starlette.types import Receive, Scope, Send

from cluster.config.cluster import ClusterConfig
from cluster.routing.resolve import Policy
from deployments.ingress.app import IngressApp
from deployments.ingress.dispatch import ModelClient
from deployments.ingress.intent import IntentReader
from deployments.ingress.server import IngressServer
from deployments.ingress.services import Services

ATTACH_S = 10.0
"""Seconds that the replicas of a new application may take to attach before they are routed to all the same: health tells."""


@dataclass(frozen=True, slots=True)
class Told:
    """What an ingress was told: a config, and the Serve application of each of its models."""

    config: ClusterConfig
    applications: Mapping[str, str]

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Told:
        """What the head process hands over. Raises pydantic's `ValidationError`."""
        return cls(ClusterConfig.model_validate(content["config"]), dict(content["applications"]))


class LiveApp:
    """The ASGI application that the server holds: it hands each request to the one of the config in force."""

    def __init__(self, services: Services, make_client: Callable[[str, str], ModelClient]) -> None:
        """`make_client` makes a client of a model (name) and its Serve application (name)."""
        self._services = services
        self._make_client = make_client
        self._app = IngressApp(services)
        self._clients = dict(services.clients)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, to its end under the config of its beginning."""
        await self._app(scope, receive, send)

    @property
    def config(self) -> ClusterConfig:
        """The config in force."""
        return self._services.config

    async def follow(self, told: Told, server: IngressServer) -> None:
        """Bring a config into force. Requests that come before the end of this are served by the one before."""
        config = told.config
        fresh = {}
        for model, application in told.applications.items():
            known = self._clients.get(model)
            if known is None or known.application != application:
                fresh[model] = self._make_client(model, application)
        await asyncio.gather(*(attach(client) for client in fresh.values()))
        for model, client in fresh.items():
            if model in self._clients:
                # The same object, so that requests under way which try again find the new replicas, too.
                self._clients[model].turn_to(client)
            else:
                self._clients[model] = client
        clients = {model: self._clients[model] for model in config.models}
        intents = IntentReader(config, clients)
        services = replace(self._services, config=config, policy=Policy(config), clients=clients, intents=intents)
        services.waking.follow(config.models, clients)
        services.health.follow(clients)
        services.admission.follow(config)
        services.precision.follow(config)
        services.experts.follow(config)
        services.pools.follow(config, clients)
        services.recent.follow(config.models)
        services.metrics.set_models(config.models)
        server.follow(config.ingress.limits)
        self._app = self._app.with_services(services)
        # A model that comes back has other replicas, so its old client is of no use.
        self._services, self._clients = services, clients


async def attach(client: ModelClient) -> None:
    """Have the replicas of a new application attached, so that the first request need not wait for them."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + ATTACH_S
    while not client.attached() and loop.time() < deadline:
        client.invite()
        await asyncio.sleep(0.1)
