from collections import Counter

from cluster.admission.asking import Asking, Waiting
from cluster.admission.line import Line
from cluster.routing.latency_class import LatencyClass

AGING_S = 10.0
INTERACTIVE, STANDARD, BATCH = LatencyClass.INTERACTIVE, LatencyClass.STANDARD, LatencyClass.BATCH


def waiting(number: int, tenant: str = "", urgency: LatencyClass = STANDARD, since_s: float = 0.0) -> Waiting:
    return Waiting(Asking(tenant, urgency, 10, 60.0), since_s, number)


def served(line: Line, times: int, now_s: float = 1.0) -> list[str]:
    """Whose requests are let in, one after the other."""
    tenants = []
    for _ in range(times):
        chosen = line.next(now_s, AGING_S)
        assert chosen is not None
        line.serve(chosen)
        tenants.append(chosen.asking.tenant)
    return tenants


def test_the_urgent_come_first_and_batch_ages() -> None:
    batch, now = waiting(0, urgency=BATCH), waiting(2, urgency=INTERACTIVE, since_s=9.0)
    assert Line([batch, waiting(1, since_s=5.0), now]).next(9.5, AGING_S) is now
    # After two steps it is as urgent as those who came later, and it came first.
    assert Line([batch, waiting(3, urgency=INTERACTIVE, since_s=20.5)]).next(20.5, AGING_S) is batch
    assert Line().next(0.0, AGING_S) is None


def test_tenants_take_turns_by_what_they_were_served() -> None:
    line = Line([*(waiting(at, "greedy") for at in range(20)), *(waiting(20 + at, "modest") for at in range(5))])
    assert Counter(served(line, 10)) == {"greedy": 5, "modest": 5}


def test_who_comes_new_or_back_gets_its_turns_and_no_more() -> None:
    line = Line([*(waiting(at, "greedy") for at in range(40)), waiting(40, "brief")])
    served(line, 20)
    for at in range(20):
        line.join(waiting(100 + at, "new"))
        line.join(waiting(200 + at, "brief"))
    # Nobody makes up for the time that it was away, and nobody starves.
    assert Counter(served(line, 12)) == {"greedy": 4, "new": 4, "brief": 4}


def test_leaving_and_coming_back_clears_no_debt() -> None:
    line = Line([waiting(0, "greedy"), waiting(1, "modest"), waiting(2, "modest")])
    first = line.next(1.0, AGING_S)
    assert first is not None
    assert first.asking.tenant == "greedy"
    line.serve(first)
    line.join(waiting(3, "greedy"))
    assert served(line, 1) == ["modest"]


def test_what_is_known_of_tenants_goes_with_them() -> None:
    line = Line([waiting(0, "here"), waiting(1, "here")])
    for at in range(2, 100):
        one = waiting(at, f"tenant-{at}")
        line.join(one)
        line.leave(one)
        line.leave(one)
    assert len(line._served) == len(line._tenants) == 1
    assert [one.number for one in line] == [0, 1]
    served(line, 2)
    assert not line._served
    assert len(line) == 0


def test_those_ahead_are_the_more_urgent_and_the_aged() -> None:
    line = Line(
        [
            waiting(0, urgency=BATCH),
            waiting(1, urgency=BATCH, since_s=8.0),
            waiting(2),
            waiting(3, urgency=INTERACTIVE, since_s=12.0),
        ]
    )
    ahead = {one: line.ahead_of(Asking("", one, 1, 60.0), 12.0, AGING_S) for one in (INTERACTIVE, STANDARD, BATCH)}
    # The first batch request waited for one step, the standard one too.
    assert ahead == {INTERACTIVE: 2, STANDARD: 3, BATCH: 4}


def test_the_last_of_the_less_urgent_is_behind() -> None:
    line = Line([waiting(0, "a", BATCH), waiting(1, "b", BATCH), waiting(2, "a")])
    person = Asking("a", INTERACTIVE, 1, 60.0)
    last, own = line.behind(person, 1.0, AGING_S, own=False), line.behind(person, 1.0, AGING_S, own=True)
    assert (last and last.number, own and own.number) == (1, 0)
    assert line.behind(Asking("a", BATCH, 1, 60.0), 1.0, AGING_S, own=False) is None
    assert line.behind(person, 30.0, AGING_S, own=False) is None
