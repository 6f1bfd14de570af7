import pytest

from cluster.admission.asking import Asking, Waiting
from cluster.admission.decision import Held, Outcome, Room, Terms, decide, fits, retry_after_s
from cluster.admission.line import Line
from cluster.routing.latency_class import LatencyClass

ROOM = Room(places=4, kv_tokens=1000, queue=4)
INTERACTIVE, STANDARD, BATCH = LatencyClass.INTERACTIVE, LatencyClass.STANDARD, LatencyClass.BATCH


def asking(tenant: str = "", tokens: int = 100, urgency: LatencyClass = STANDARD, timeout_s: float = 60) -> Asking:
    return Asking(tenant, urgency, tokens, timeout_s)


def line(*askings: Asking) -> Line:
    return Line(Waiting(one, 0.0, number) for number, one in enumerate(askings))


def terms(drain: float | None = None, share: float = 1.0, now_s: float = 1.0) -> Terms:
    return Terms(now_s, aging_s=10.0, tenant_share=share, drain_per_s=drain, retry_per_s=drain)


@pytest.mark.parametrize(
    ("held", "waiting", "outcome", "code"),
    [
        (Held(), [], Outcome.ADMITTED, "room"),
        (Held(3, 900), [], Outcome.ADMITTED, "room"),
        (Held(4, 400), [], Outcome.QUEUED, "queued"),
        (Held(1, 901), [], Outcome.QUEUED, "queued"),
        (Held(0, 0), [asking()], Outcome.QUEUED, "queued"),
        (Held(4, 400), [asking("other")] * 4, Outcome.REJECTED, "saturated"),
        (Held(4, 400), [asking("own")] * 2, Outcome.REJECTED, "tenant_queue_full"),
    ],
)
def test_what_becomes_of_a_request(held: Held, waiting: list[Asking], outcome: Outcome, code: str) -> None:
    decision = decide(asking("own"), ROOM, held, line(*waiting), terms(2.0, 0.5))
    assert (decision.outcome, decision.code) == (outcome, code)
    assert decision.reason
    if outcome is Outcome.REJECTED:
        assert decision.status == (429 if code == "tenant_queue_full" else 503)


def test_without_keys_nobody_has_a_share() -> None:
    assert decide(asking(), ROOM, Held(4), line(*[asking()] * 3), terms(share=0.5)).outcome is Outcome.QUEUED


def test_retry_after_comes_from_the_rate_at_which_requests_end() -> None:
    full = line(*[asking()] * 4)
    for rate, seconds in ((5.0, 1), (0.5, 10), (0.01, 60), (None, 1)):
        assert decide(asking(timeout_s=1e9), ROOM, Held(4), full, terms(rate)).retry_after_s == seconds
        assert retry_after_s(4, rate) == seconds


def test_a_wait_that_outlasts_the_request_is_refused_at_once() -> None:
    decision = decide(asking(timeout_s=5), ROOM, Held(4), line(asking()), terms(0.1))
    assert (decision.outcome, decision.status) == (Outcome.REJECTED, 503)
    assert "longer than the 5 s" in decision.reason


def test_nobody_is_refused_for_a_pace_that_is_not_known() -> None:
    guessed = Terms(16.0, aging_s=10.0, tenant_share=1.0, drain_per_s=None, retry_per_s=1 / 16)
    decision = decide(asking(timeout_s=60), ROOM, Held(4), line(*[asking()] * 3), guessed)
    assert (decision.outcome, decision.retry_after_s) == (Outcome.QUEUED, 60)


def test_the_less_urgent_are_in_nobodys_way() -> None:
    slow = terms(0.1)
    batch = line(*[asking(urgency=BATCH)] * 3)
    assert decide(asking(timeout_s=15, urgency=INTERACTIVE), ROOM, Held(4), batch, slow).outcome is Outcome.QUEUED
    assert decide(asking(timeout_s=15, urgency=BATCH), ROOM, Held(4), batch, slow).outcome is Outcome.REJECTED


def test_in_a_full_line_the_last_of_the_less_urgent_makes_room() -> None:
    full = line(asking(urgency=BATCH), asking(urgency=INTERACTIVE), asking(urgency=BATCH), asking())
    decision = decide(asking(), ROOM, Held(4), full, terms())
    assert decision.outcome is Outcome.QUEUED
    assert decision.displaces is not None
    assert decision.displaces.number == 2
    assert decide(asking(urgency=BATCH), ROOM, Held(4), full, terms()).outcome is Outcome.REJECTED
    # After two steps of aging they are as urgent as anybody.
    assert decide(asking(), ROOM, Held(4), full, terms(now_s=20.0)).outcome is Outcome.REJECTED


def test_a_tenant_at_its_share_makes_room_among_its_own() -> None:
    waiting = line(asking("other", urgency=BATCH), asking("own", urgency=BATCH), asking("own"))
    decision = decide(asking("own", urgency=INTERACTIVE), ROOM, Held(4), waiting, terms(share=0.5))
    assert decision.displaces is not None
    assert decision.displaces.number == 1
    refused = decide(asking("own", urgency=BATCH), ROOM, Held(4), waiting, terms(share=0.5))
    assert (refused.status, refused.displaces) == (429, None)


def test_a_request_alone_and_one_to_a_model_without_replicas_are_for_others_to_judge() -> None:
    assert fits(asking(tokens=5000), ROOM, Held())
    assert not fits(asking(tokens=5000), ROOM, Held(1, 10))
    assert decide(asking(), Room(0, None, 0), Held(9), line(), terms()).outcome is Outcome.ADMITTED
