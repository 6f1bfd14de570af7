"""The loop of attempts ends, within its bounds, whatever comes back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.routing.feedback import Accept, Attempt, Bounds, Escalate, Requery, Step, Template, next_step
from cluster.verification.verdict import Verdict

MODELS = ("a", "b", "c", "d")
UNIT = st.floats(0, 1)

bounds = st.builds(
    Bounds,
    threshold=UNIT,
    max_attempts=st.integers(1, 8),
    max_tokens=st.integers(1, 5000),
    deadline_s=st.floats(0, 100),
    requery_temperature=st.floats(0.01, 2),
    escalation=st.lists(st.sampled_from(MODELS), max_size=6).map(tuple),
    thresholds=st.none() | st.dictionaries(st.sampled_from(MODELS), UNIT),
    template=st.booleans(),
)
outcomes = st.tuples(
    st.none() | UNIT,
    st.none() | st.builds(Verdict, st.booleans(), st.just("regex"), st.just("a reason")),
    st.integers(0, 2000),
    st.floats(0, 30),
    st.none() | st.none() | st.just("replica_lost"),
    st.booleans(),
    st.integers(0, 3000),
    st.sets(st.sampled_from(MODELS)),
)


def attempt_of(model: str, temperature: float | None, outcome: tuple[object, ...]) -> Attempt:
    return Attempt(model, temperature, *outcome[:7])  # type: ignore[arg-type]


@given(bounds, st.none() | st.floats(0, 2), st.lists(outcomes, min_size=9, max_size=9), st.integers(0, 500))
def test_attempts_end_within_their_bounds(
    held: Bounds, temperature: float | None, found: list[tuple[object, ...]], check_tokens: int
) -> None:
    attempts: list[Attempt] = []
    model, now_s = "a", 0.0
    step: Step | None = None
    for outcome in found:
        attempt = attempt_of(model, temperature, outcome)
        attempts.append(attempt)
        now_s += attempt.seconds
        ready: set[str] = outcome[7]  # type: ignore[assignment]
        step = next_step(attempts, held, ready, now_s, check_tokens)
        assert step == next_step(list(attempts), held, frozenset(ready), now_s, check_tokens)
        assert step.reason
        if isinstance(step, Accept | Template):
            break
        # Another attempt is made: there is room for one as costly as the costliest so far.
        assert len(attempts) < held.max_attempts
        assert now_s + max(made.seconds for made in attempts) < held.deadline_s
        dearest = max(max(made.tokens, made.tokens_at_most) for made in attempts)
        going_on = [made for made in attempts if made.kept and not held.template]
        more = sum(max(0, made.tokens_at_most - made.tokens) for made in going_on)
        assert check_tokens + sum(made.tokens for made in attempts) + more + dearest <= held.max_tokens
        if isinstance(step, Requery):
            assert temperature is None or step.temperature < temperature
            assert [made.model for made in attempts].count(model) == 1
            temperature = step.temperature
        else:
            assert isinstance(step, Escalate)
            assert step.model in ready
            assert step.model not in {made.model for made in attempts}
            model, temperature = step.model, temperature if step.temperature is None else step.temperature
    assert isinstance(step, Accept | Template)
    assert len(attempts) <= held.max_attempts
    if isinstance(step, Accept):
        assert attempts[step.attempt].failed is None
        assert step.good or attempts[step.attempt].kept


@given(bounds, outcomes)
def test_a_confident_verified_answer_always_leaves(held: Bounds, outcome: tuple[object, ...]) -> None:
    attempt = Attempt("a", 1.0, 1.0, Verdict(True, "regex", "found"))
    assert isinstance(next_step([attempt], held, set(), 10**6), Accept)
