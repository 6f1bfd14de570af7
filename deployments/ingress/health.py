"""What the ingress knows of its models' health: from the token channel, and from Serve for those that are not there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from cluster.routing.signals import ModelHealth
from deployments.channel.receiver import ChannelReceiver
from deployments.ingress.dispatch import ModelClient

_log = logging.getLogger(__name__)

INVITE_EVERY_S = 0.25
MAX_INVITE_EVERY_S = 2.0


class Health:
    """Keeps the replicas of all models attached to this ingress."""

    def __init__(
        self,
        clients: Mapping[str, ModelClient],
        channel: ChannelReceiver,
        known_replicas: Callable[[str], frozenset[str] | None],
    ) -> None:
        self._clients = clients
        self._channel = channel
        self._known = known_replicas
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin inviting replicas."""
        self._task = asyncio.get_running_loop().create_task(self._keep_attached())

    def stop(self) -> None:
        """Invite no more."""
        if self._task is not None:
            self._task.cancel()

    def models(self) -> dict[str, ModelHealth]:
        """The health of every model."""
        attached = self._channel.attached()
        result = {}
        for model in self._clients:
            ready = len(self._channel.replicas(model))
            silent = sum(1 for replica in attached if replica.hello.model == model) - ready
            reason = "" if ready else "its replica is hung or draining" if silent else "no replica has started"
            result[model] = ModelHealth(ready, reason)
        return result

    @property
    def ready(self) -> bool:
        """Whether every model can take a request."""
        return all(model.healthy for model in self.models().values())

    async def _keep_attached(self) -> None:
        """Invite the replicas of a model as long as Serve lists some that are not attached."""
        pause = dict.fromkeys(self._clients, INVITE_EVERY_S)
        due = dict.fromkeys(self._clients, 0.0)
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            for model, client in self._clients.items():
                known = self._known(model)
                missing = known is None or any(not self._channel.is_attached(replica) for replica in known)
                if not missing:
                    pause[model], due[model] = INVITE_EVERY_S, now
                elif now >= due[model]:
                    client.invite()
                    due[model] = now + pause[model]
                    pause[model] = min(2 * pause[model], MAX_INVITE_EVERY_S)
            await asyncio.sleep(INVITE_EVERY_S)
