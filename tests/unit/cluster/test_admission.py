from collections import Counter

import pytest

from cluster.admission import Asking, Held, Outcome, Room, Waiting, decide, fits, next_in_line
from cluster.routing.latency_class import LatencyClass

ROOM = Room(places=4, kv_tokens=1000, queue=4)
AGING_S = 10.0


def asking(
    tenant: str = "", tokens: int = 100, urgency: LatencyClass = LatencyClass.STANDARD, timeout_s: float = 60
) -> Asking:
    return Asking(tenant, urgency, tokens, timeout_s)


def queue(*askings: Asking, since_s: float = 0.0) -> list[Waiting]:
    return [Waiting(one, since_s, number) for number, one in enumerate(askings)]


@pytest.mark.parametrize(
    ("held", "waiting", "outcome", "code"),
    [
        (Held(), [], Outcome.ADMITTED, "room"),
        (Held(3, 900), [], Outcome.ADMITTED, "room"),
        (Held(4, 400), [], Outcome.QUEUED, "queued"),
        (Held(1, 901), [], Outcome.QUEUED, "queued"),
        (Held(0, 0), queue(asking()), Outcome.QUEUED, "queued"),
        (Held(4, 400), queue(*[asking("other")] * 4), Outcome.REJECTED, "saturated"),
        (Held(4, 400), queue(*[asking("own")] * 2), Outcome.REJECTED, "tenant_queue_full"),
    ],
)
def test_what_becomes_of_a_request(held: Held, waiting: list[Waiting], outcome: Outcome, code: str) -> None:
    decision = decide(asking("own"), ROOM, held, waiting, 2.0, 0.5)
    assert (decision.outcome, decision.code) == (outcome, code)
    assert decision.reason
    if outcome is Outcome.REJECTED:
        assert decision.status == (429 if code == "tenant_queue_full" else 503)


def test_without_keys_nobody_has_a_share() -> None:
    assert decide(asking(), ROOM, Held(4), queue(*[asking()] * 3), None, 0.5).outcome is Outcome.QUEUED


def test_retry_after_comes_from_the_rate_at_which_requests_end() -> None:
    full = queue(*[asking()] * 4)
    for rate, seconds in ((5.0, 1), (0.5, 10), (0.01, 60), (None, 1)):
        assert decide(asking(timeout_s=1e9), ROOM, Held(4), full, rate, 1.0).retry_after_s == seconds


def test_a_wait_that_outlasts_the_request_is_refused_at_once() -> None:
    decision = decide(asking(timeout_s=5), ROOM, Held(4), queue(asking()), 0.1, 1.0)
    assert (decision.outcome, decision.status) == (Outcome.REJECTED, 503)
    assert "longer than the 5 s" in decision.reason


def test_a_request_alone_and_one_to_a_model_without_replicas_are_for_others_to_judge() -> None:
    assert fits(asking(tokens=5000), ROOM, Held())
    assert not fits(asking(tokens=5000), ROOM, Held(1, 10))
    assert decide(asking(), Room(0, None, 0), Held(9), [], None, 1.0).outcome is Outcome.ADMITTED


def test_the_urgent_come_first_and_batch_ages() -> None:
    batch, standard = asking(urgency=LatencyClass.BATCH), asking()
    now = asking(urgency=LatencyClass.INTERACTIVE)
    waiting = [Waiting(batch, 0.0, 0), Waiting(standard, 5.0, 1), Waiting(now, 9.0, 2)]
    chosen = next_in_line(waiting, {}, 9.5, AGING_S)
    assert chosen is not None
    assert chosen.asking is now
    # After two steps it is as urgent as those who came later, and it came first.
    later = [*waiting[:1], Waiting(now, 20.5, 3)]
    chosen = next_in_line(later, {}, 20.5, AGING_S)
    assert chosen is not None
    assert chosen.asking is batch
    assert next_in_line([], {}, 0.0, AGING_S) is None


def test_tenants_take_turns_by_what_they_were_served() -> None:
    waiting = queue(*[asking("greedy", 10)] * 20, *[asking("modest", 10)] * 5)
    served: dict[str, float] = {}
    order = []
    for _ in range(10):
        chosen = next_in_line(waiting, served, 1.0, AGING_S)
        assert chosen is not None
        waiting.remove(chosen)
        order.append(chosen.asking.tenant)
        served[chosen.asking.tenant] = served.get(chosen.asking.tenant, 0.0) + chosen.asking.tokens
    assert Counter(order) == {"greedy": 5, "modest": 5}
