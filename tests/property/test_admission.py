"""What holds for every sequence of requests: nobody gets lost, nobody starves, and more load is never better for it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from cluster.admission.asking import RANKS, Asking, Waiting
from cluster.admission.decision import Held, Outcome, Room, Terms, decide, fits
from cluster.admission.line import Line
from cluster.routing.latency_class import LatencyClass

AGING_S = 10.0

ASKINGS = st.builds(
    Asking,
    tenant=st.sampled_from(["", "a", "b", "c"]),
    latency_class=st.sampled_from(LatencyClass),
    tokens=st.integers(0, 500),
    timeout_s=st.floats(1, 600),
)
ROOMS = st.builds(Room, places=st.integers(1, 8), kv_tokens=st.none() | st.integers(1, 2000), queue=st.integers(0, 8))
EVENTS = st.lists(ASKINGS | st.none(), max_size=80)
"""A request that comes, or None: the one that was let in first ends."""


@dataclass
class Hall:
    """What the adapter does, without a clock: one second passes from event to event."""

    room: Room
    waiting: Line = field(default_factory=Line)
    running: list[Asking] = field(default_factory=list)
    received: int = 0
    admitted: int = 0
    rejected: int = 0
    """Those that were displaced included."""

    @property
    def held(self) -> Held:
        return Held(len(self.running), sum(one.tokens for one in self.running))

    def come(self, asking: Asking, now_s: float) -> None:
        self.received += 1
        decision = decide(asking, self.room, self.held, self.waiting, Terms(now_s, AGING_S, 0.5))
        if decision.displaces is not None:
            self.waiting.leave(decision.displaces)
            self.rejected += 1
            assert decision.displaces.rank(now_s, AGING_S) > RANKS[asking.latency_class]
        if decision.outcome is Outcome.ADMITTED:
            self.admitted += 1
            self.running.append(asking)
        elif decision.outcome is Outcome.QUEUED:
            self.waiting.join(Waiting(asking, now_s, self.received))
        else:
            self.rejected += 1
            assert decision.status in (429, 503)

    def end(self) -> None:
        if self.running:
            self.running.pop(0)

    def let_in(self, now_s: float) -> None:
        while (following := self.waiting.next(now_s, AGING_S)) is not None:
            assert following is first_of(self.waiting, now_s)
            if not fits(following.asking, self.room, self.held):
                return
            self.waiting.serve(following)
            self.admitted += 1
            self.running.append(following.asking)


def first_of(line: Line, now_s: float) -> Waiting:
    """Who is next, found by looking at everybody."""
    return min(line, key=lambda one: (one.rank(now_s, AGING_S), line._served[one.asking.tenant], one.number))


def run(room: Room, events: list[Asking | None]) -> Hall:
    hall = Hall(room)
    for now_s, event in enumerate(events):
        if event is None:
            hall.end()
        else:
            hall.come(event, now_s)
        hall.let_in(now_s)
        assert hall.admitted + len(hall.waiting) + hall.rejected == hall.received
        assert len(hall.running) <= room.places
        assert len(hall.waiting) <= room.queue
        if room.kv_tokens is not None and len(hall.running) > 1:
            assert hall.held.tokens <= room.kv_tokens or hall.running[0].tokens > room.kv_tokens
        # Nobody waits while there is nothing to wait for.
        assert hall.running or not len(hall.waiting)
    return hall


@given(ROOMS, EVENTS)
def test_admitted_and_queued_and_rejected_are_received(room: Room, events: list[Asking | None]) -> None:
    run(room, events)


@given(ROOMS, EVENTS)
def test_everybody_who_waits_is_let_in_when_requests_end(room: Room, events: list[Asking | None]) -> None:
    hall = run(room, [*events, *[None] * 200])
    assert not len(hall.waiting)
    assert not hall.running
    assert hall.admitted + hall.rejected == hall.received


@given(
    ASKINGS, ROOMS, st.integers(0, 10), st.integers(0, 3000), st.lists(ASKINGS, max_size=10), ASKINGS, st.none() | st.floats(0.01, 50)
)  # fmt: skip
def test_more_load_never_turns_a_rejection_into_less(
    asking: Asking, room: Room, requests: int, tokens: int, ahead: list[Asking], more: Asking, drain: float | None
) -> None:
    waiting = [Waiting(one, 0.0, number) for number, one in enumerate(ahead)]
    terms = Terms(1.0, AGING_S, 0.5, drain, drain)
    before = decide(asking, room, Held(requests, tokens), Line(waiting), terms)
    # One that is less urgent is in nobody's way; what it does to a line that is full, `Hall` shows.
    more = replace(more, latency_class=min(more.latency_class, asking.latency_class, key=RANKS.__getitem__))
    for held, queue in (
        (Held(requests + 1, tokens + more.tokens), waiting),
        (Held(requests, tokens), [*waiting, Waiting(more, 0.0, 99)]),
    ):
        after = decide(asking, room, held, Line(queue), terms)
        if before.outcome is Outcome.REJECTED:
            assert after.outcome is Outcome.REJECTED
            assert after.retry_after_s >= before.retry_after_s
        if before.outcome is Outcome.QUEUED:
            assert after.outcome is not Outcome.ADMITTED
