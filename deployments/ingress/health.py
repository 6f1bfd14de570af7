"""What the ingress knows of its models' health: from the token channel, and from Serve for those that are not there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cluster.routing.snapshot import ModelState
from deployments.channel.receiver import AttachedReplica, ChannelReceiver
from deployments.ingress.dispatch import ModelClient
from deployments.ingress.recent import Recent, RecentAnswers
from deployments.ingress.waking import Waking

_log = logging.getLogger(__name__)

INVITE_EVERY_S = 0.25
MAX_INVITE_EVERY_S = 2.0


@dataclass(slots=True)
class _Load:
    """Sums over the replicas of one model."""

    ready: int = 0
    silent: int = 0
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    age_s: float = 0.0

    def add(self, replica: AttachedReplica, now: float) -> None:
        """Take in one that takes requests."""
        stats = replica.stats
        self.ready += 1
        # What was sent and is not told of yet counts, too.
        self.running += max(stats.running, len(replica.streams) - stats.waiting)
        self.waiting += stats.waiting
        self.kv_usage += stats.kv_usage
        self.age_s = max(self.age_s, now - replica.heard_at)

    def state(self, recent: Recent, impaired: str) -> ModelState:
        """Means per replica."""
        ready = self.ready
        if not ready:
            reason = "its replica is hung or draining" if self.silent else "no replica has started"
            return ModelState(0, reason)
        return ModelState(
            ready_replicas=ready,
            running=self.running / ready,
            waiting=self.waiting / ready,
            kv_usage=self.kv_usage / ready,
            load_age_s=self.age_s,
            ttft_s=recent.ttft_s,
            confidence=recent.confidence,
            impaired=impaired,
        )


class Health:
    """Keeps the replicas of all models attached to this ingress."""

    def __init__(
        self,
        clients: Mapping[str, ModelClient],
        channel: ChannelReceiver,
        known_replicas: Callable[[str], frozenset[str] | None],
        recent: RecentAnswers,
        waking: Waking | None = None,
        impaired: Callable[[str], str] = lambda _model: "",
    ) -> None:
        """`impaired` says of a model why its answers would be worse than usual; empty: they would not."""
        self._impaired = impaired
        self._waking = Waking() if waking is None else waking
        self._recent = recent
        self._clients = dict(clients)
        self._channel = channel
        self._known = known_replicas
        self.leaving = False
        """This ingress is to stop, and nobody is to send it anything new."""
        self._task: asyncio.Task[None] | None = None

    def follow(self, clients: Mapping[str, ModelClient]) -> None:
        """The models that there are now."""
        self._clients = dict(clients)

    def start(self) -> None:
        """Begin inviting replicas."""
        self._task = asyncio.get_running_loop().create_task(self._keep_attached())

    def stop(self) -> None:
        """Invite no more."""
        if self._task is not None:
            self._task.cancel()

    def models(self) -> dict[str, ModelState]:
        """The state of every model now, from what its replicas told last: one pass over the replicas, no waiting."""
        now = asyncio.get_running_loop().time()
        loads = {model: _Load() for model in self._clients}
        for replica in self._channel.attached():
            load = loads.get(replica.hello.model)
            if load is None:
                continue
            if replica.routable(now):
                load.add(replica, now)
            else:
                load.silent += 1
        return {model: self._state(model, load) for model, load in loads.items()}

    def _state(self, model: str, load: _Load) -> ModelState:
        if load.ready:
            self._waking.ready(model)
        elif not load.silent and (parked := self._waking.state(model)) is not None:
            return parked
        return load.state(self._recent.of(model), self._impaired(model))

    @property
    def ready(self) -> bool:
        """Whether every model can take a request, or is parked."""
        return all(model.healthy or model.parked for model in self.models().values())

    async def _keep_attached(self) -> None:
        """Invite the replicas of a model as long as Serve lists some that are not attached."""
        pause: dict[str, float] = {}
        due: dict[str, float] = {}
        loop = asyncio.get_running_loop()
        while True:
            # Also when nobody asks: how long a start took is learnt here.
            self.models()
            now = loop.time()
            for model, client in self._clients.items():
                known = self._known(client.application)
                missing = known is None or any(not self._channel.is_attached(replica) for replica in known)
                if not missing:
                    pause[model], due[model] = INVITE_EVERY_S, now
                elif now >= due.get(model, 0.0):
                    client.invite()
                    wait = pause.get(model, INVITE_EVERY_S)
                    due[model], pause[model] = now + wait, min(2 * wait, MAX_INVITE_EVERY_S)
            await asyncio.sleep(INVITE_EVERY_S)
