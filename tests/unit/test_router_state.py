"""What routers remember. That Serve's router uses it is seen in tests/faults and tests/integration."""

from __future__ import annotations

from deployments.router_state import MAX_REASONS, RouterState, Turns


def test_those_that_are_gone_are_forgotten() -> None:
    turns = Turns()
    for number in range(1000):
        turns.note(f"r{number}")
        turns.note("stays")
        turns.keep(frozenset({f"r{number}", "stays"}))
    assert len(turns.chosen) <= 2
    assert turns.chosen["stays"] == 2000


def test_a_reason_is_told_once_and_not_kept_for_ever() -> None:
    state = RouterState()
    state.note_reason("s", "least work")
    assert state.take_reason("s") == "least work"
    assert state.take_reason("s") is None
    for number in range(2 * MAX_REASONS):
        state.note_reason(str(number), "never asked for")
    assert len(state._reasons) == MAX_REASONS
