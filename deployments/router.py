"""Chooses a replica inside a model's deployment: a Ray Serve request router."""

from __future__ import annotations

from collections.abc import Mapping

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

from deployments.channel.receiver import ChannelReceiver


class RouterState:
    """What the routers of one ingress process share with it."""

    def __init__(self) -> None:
        self.channel: ChannelReceiver | None = None
        self._replicas: dict[str, frozenset[str]] = {}

    def note(self, application: str, replica_ids: frozenset[str]) -> None:
        """Serve's current list of an application's replicas."""
        self._replicas[application] = replica_ids

    def replicas(self, application: str) -> frozenset[str] | None:
        """The last list noted, or None while Serve has not told of any."""
        return self._replicas.get(application)


ROUTER_STATE = RouterState()
"""Serve builds routers itself, inside the process that holds the handle, and hands them nothing but constants. This is
the one process-wide object: through it an ingress and its routers tell each other what they know."""


class Turns:
    """Orders replicas by their load; among equals, whoever was chosen longest ago comes first.

    A load is known only once a replica has told of it. Requests that come together would all see the same one, and all go
    to the same replica, if equals did not take turns.
    """

    def __init__(self) -> None:
        self._chosen: dict[str, int] = {}
        self._choices = 0

    def order(self, loads: Mapping[str, int]) -> list[str]:
        """The replicas (by id), the one to choose first; it counts as chosen now."""
        ordered = sorted(loads, key=lambda replica: (loads[replica], self._chosen.get(replica, 0)))
        if ordered:
            self._choices += 1
            self._chosen[ordered[0]] = self._choices
        return ordered

    def keep(self, replicas: frozenset[str]) -> None:
        """Forget all replicas but these."""
        self._chosen = {replica: turn for replica, turn in self._chosen.items() if replica in replicas}


class ChannelRouter(FIFOMixin, RequestRouter):
    """Sends a request to the attached replica with the least work, by what it told and by what was sent to it since.

    Replicas whose channel is down or silent get nothing: the channel notices a death within milliseconds, Serve's own
    health checks within seconds. Serve still refuses for a replica that is full, and the next one is tried.
    """

    def initialize_state(self, **_kwargs: object) -> None:
        """Serve calls it once the router is made."""
        self._turns = Turns()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,  # noqa: ARG002 - Serve passes it by name
    ) -> list[list[RunningReplica]]:
        """The candidates by rank, best first; empty while none is attached (Serve then asks again)."""
        channel = ROUTER_STATE.channel
        if channel is None:
            return [candidate_replicas]
        alive = {r.replica_id.unique_id: r for r in candidate_replicas if channel.is_routable(r.replica_id.unique_id)}
        # Serve counts what it sends at once, the channel what the replica says: whichever is more is newer.
        sent = self.replica_queue_len_cache
        loads = {name: max(channel.load(name), sent.get(replica.replica_id) or 0) for name, replica in alive.items()}
        return [[alive[name]] for name in self._turns.order(loads)]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Take in Serve's list; the ingress invites those that are not attached yet."""
        super().update_replicas(replicas)
        known = frozenset(replica.replica_id.unique_id for replica in replicas)
        self._turns.keep(known)
        ROUTER_STATE.note(self.app_name, known)
