"""The line in front of a model: those that wait, found by class and tenant without looking at each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import takewhile

from cluster.admission.asking import RANKS, Asking, Waiting
from cluster.routing.latency_class import LatencyClass


class Line:
    """Those that wait, and what tenants were served. Holds no clock; times are seconds on the caller's.

    Within one urgency tenants take turns by what they were served, as in start-time fair queueing (Goyal, Vin, Cheng 1996): who
    comes new begins where the least served of those that wait is, and who comes back no further ahead than that.
    """

    def __init__(self, waiting: Iterable[Waiting] = ()) -> None:
        # Within a class and a tenant they wait in the order in which they came, so the first is the most urgent, too.
        self._queues: dict[tuple[LatencyClass, str], dict[int, Waiting]] = {}
        self._classes: dict[LatencyClass, dict[int, Waiting]] = {one: {} for one in RANKS}
        self._tenants: dict[str, int] = {}
        self._served: dict[str, float] = {}
        self._virtual = 0.0
        """What the least served tenant that waited was served; never falls while somebody waits."""
        for one in waiting:
            self.join(one)

    def __len__(self) -> int:
        return sum(len(one) for one in self._classes.values())

    def __iter__(self) -> Iterator[Waiting]:
        return (one for waiting in self._classes.values() for one in waiting.values())

    def of(self, tenant: str) -> int:
        """How many of a tenant wait."""
        return self._tenants.get(tenant, 0)

    def join(self, one: Waiting) -> None:
        """It waits from now on, behind those of its class and tenant."""
        asking = one.asking
        if not self.of(asking.tenant):
            self._served[asking.tenant] = max(self._served.get(asking.tenant, 0.0), self._virtual)
        self._tenants[asking.tenant] = self.of(asking.tenant) + 1
        self._queues.setdefault((asking.latency_class, asking.tenant), {})[one.number] = one
        self._classes[asking.latency_class][one.number] = one

    def leave(self, one: Waiting) -> None:
        """It does not wait any more. Nothing happens if it did not."""
        asking = one.asking
        if self._classes[asking.latency_class].pop(one.number, None) is None:
            return
        queue = self._queues[asking.latency_class, asking.tenant]
        del queue[one.number]
        if not queue:
            del self._queues[asking.latency_class, asking.tenant]
        self._tenants[asking.tenant] -= 1
        if not self._tenants[asking.tenant]:
            del self._tenants[asking.tenant]
            if self._served[asking.tenant] <= self._virtual:
                # It would begin there anyway.
                del self._served[asking.tenant]
        if not self._tenants:
            self._served.clear()
            self._virtual = 0.0

    def serve(self, one: Waiting) -> None:
        """It leaves because it is let in; its tenant is charged its tokens."""
        tenant = one.asking.tenant
        self._served[tenant] += one.asking.tokens
        self.leave(one)
        if self._tenants:
            self._virtual = max(self._virtual, min(self._served[waiting] for waiting in self._tenants))
            for gone in [name for name, served in self._served.items() if served <= self._virtual]:
                if gone not in self._tenants:
                    del self._served[gone]

    def next(self, now_s: float, aging_s: float) -> Waiting | None:
        """Who is next: the most urgent; among equals whose tenant was served least (tokens); among these who came first.

        Nobody is passed over because something smaller would fit.
        """
        heads = (next(iter(queue.values())) for queue in self._queues.values())
        return min(
            heads,
            key=lambda one: (one.rank(now_s, aging_s), self._served[one.asking.tenant], one.number),
            default=None,
        )

    def ahead_of(self, asking: Asking, now_s: float, aging_s: float) -> int:
        """How many would be as urgent as `asking` if it came now, or more."""
        rank = RANKS[asking.latency_class]
        found = 0
        for latency_class, waiting in self._classes.items():
            if RANKS[latency_class] <= rank:
                found += len(waiting)
            else:
                found += sum(1 for _ in takewhile(lambda one: one.rank(now_s, aging_s) <= rank, waiting.values()))
        return found

    def behind(self, asking: Asking, now_s: float, aging_s: float, *, own: bool) -> Waiting | None:
        """The last in line, of its own tenant alone if `own`, if `asking` is more urgent; None: nobody is less urgent."""
        queues = ((key, queue) for key, queue in self._queues.items() if not own or key[1] == asking.tenant)
        tails = (next(reversed(queue.values())) for _, queue in queues)
        last = max(tails, key=lambda one: (one.rank(now_s, aging_s), one.number), default=None)
        return None if last is None or last.rank(now_s, aging_s) <= RANKS[asking.latency_class] else last
