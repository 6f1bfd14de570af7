"""Chooses a replica inside a model's deployment: a Ray Serve request router.

Serve pickles this module by value, so what it holds is a copy in each process: what a router shares with its ingress lives in
`router_state`, which is reached through the module alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from cluster.routing.prefixes import Prefix, PrefixIndex, prefixes_of
from cluster.routing.replicas import Replica, choose_replica
from deployments import router_state
from deployments.replica.spec import ReplicaCall

if TYPE_CHECKING:
    from ray.serve._private.replica_result import ReplicaResult


class ChannelRouter(FIFOMixin, RequestRouter):
    """Sends a request to the attached replica with the least work, or back to the one that holds its prefix.

    Replicas whose channel is down or silent get nothing: the channel notices a death within milliseconds, Serve's own
    health checks within seconds. Serve still refuses for a replica that is full, and the next one is tried.
    """

    def initialize_state(self, **_kwargs: object) -> None:
        """Serve calls it once the router is made."""
        self._turns = router_state.Turns()
        self._prefixes = PrefixIndex()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The candidates by rank, best first; empty while none is attached (Serve then asks again)."""
        if pending_request is not None:
            # Those that are returned are all that there are. Without this Serve asks again at once, and for ever: where none is
            # attached, or all are full, the event loop would do nothing else.
            pending_request.routing_context.should_backoff = True
        channel = router_state.STATE.channel
        if channel is None:
            return [candidate_replicas]
        # Serve counts what it sends at once, the channel what the replica says: whichever is more is newer.
        sent = self.replica_queue_len_cache
        alive, seen = {}, []
        for candidate in candidate_replicas:
            name = candidate.replica_id.unique_id
            told = channel.told(name)
            if told is not None:
                alive[name] = candidate
                load = max(told.load, sent.get(candidate.replica_id) or 0)
                seen.append(Replica(name, load, candidate.max_ongoing_requests, told.kv_usage, told.age_s))
        call = _call_of(pending_request)
        # One replica needs no choice, and so no look at the prompt.
        cached = self._prefixes.cached(_prefixes(call)) if call is not None and len(seen) > 1 else {}
        choice = choose_replica(seen, cached, self._turns.chosen)
        if choice.order:
            self._turns.note(choice.order[0])
            if call is not None:
                router_state.STATE.note_reason(call.stream, choice.reason)
        return [[alive[name]] for name in choice.order]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult) -> None:
        """Serve tells who took a request: that one holds its prefix from now on."""
        super().on_request_routed(pending_request, replica_id, result)
        call = _call_of(pending_request)
        if call is not None and len(router_state.STATE.replicas(self.app_name) or ()) > 1:
            self._prefixes.note(_prefixes(call), replica_id.unique_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Take in Serve's list; the ingress invites those that are not attached yet."""
        super().update_replicas(replicas)
        known = frozenset(replica.replica_id.unique_id for replica in replicas)
        self._turns.keep(known)
        self._prefixes.keep(known)
        router_state.STATE.note(self.app_name, known)


def _call_of(pending_request: PendingRequest | None) -> ReplicaCall | None:
    arguments = () if pending_request is None else pending_request.args
    call = arguments[0] if arguments else None
    return call if isinstance(call, ReplicaCall) else None


def _prefixes(call: ReplicaCall) -> tuple[Prefix, ...]:
    """Of one application the model's revision, tokenizer and template are the same; the tenant is not."""
    return prefixes_of(call.request.body, (call.request.tenant,))
