"""Chooses a replica inside a model's deployment: a Ray Serve request router."""

from __future__ import annotations

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


class ChannelRouter(FIFOMixin, RequestRouter):
    """Sends a request to the attached replica with the least work; ties go to the one that Serve lists first.

    Replicas whose channel is down or silent get nothing: the channel notices a death within milliseconds, Serve's own
    health checks within seconds. Serve still refuses for a replica that is full, and the next one is tried.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,  # noqa: ARG002 - Serve passes it by name
    ) -> list[list[RunningReplica]]:
        """The candidates by rank, best first; empty while none is attached (Serve then asks again)."""
        channel = ROUTER_STATE.channel
        if channel is None:
            return [candidate_replicas]
        alive = [r for r in candidate_replicas if channel.is_routable(r.replica_id.unique_id)]
        alive.sort(key=lambda replica: channel.load(replica.replica_id.unique_id))
        return [[replica] for replica in alive]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Take in Serve's list; the ingress invites those that are not attached yet."""
        super().update_replicas(replicas)
        ROUTER_STATE.note(self.app_name, frozenset(replica.replica_id.unique_id for replica in replicas))
