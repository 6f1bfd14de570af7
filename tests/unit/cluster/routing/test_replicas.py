from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cluster.routing.replicas import STALE_AFTER_S, Replica, choose_replica

FRESH = st.builds(
    Replica,
    name=st.sampled_from("abcdefgh"),
    load=st.floats(0, 200),
    places=st.integers(1, 64),
    kv_usage=st.none() | st.floats(0, 1),
    age_s=st.floats(0, 20),
)
MANY = st.lists(FRESH, max_size=8, unique_by=lambda replica: replica.name)
CACHED = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 1))


def first(*replicas: Replica, cached: dict[str, float] | None = None) -> str:
    return choose_replica(replicas, cached or {}, {}).order[0]


def test_least_work_then_least_memory() -> None:
    assert first(Replica("a", 5, 10), Replica("b", 2, 10)) == "b"
    assert first(Replica("a", 2, 10, 0.8), Replica("b", 2, 10, 0.1)) == "b"
    assert first(Replica("a", 10, 64), Replica("b", 4, 8)) == "a"


def test_a_chat_goes_back_to_its_replica_unless_that_is_overloaded_or_full() -> None:
    cached = {"a": 0.9}
    choice = choose_replica([Replica("a", 4, 10, 0.5), Replica("b", 0, 10, 0.1)], cached, {})
    assert choice.order == ("a", "b")
    assert choice.reason == "holds 90% of the prompt"
    busy = choose_replica([Replica("a", 5, 10, 0.5), Replica("b", 0, 10, 0.1)], cached, {})
    assert busy.order == ("b", "a")
    assert "too busy" in busy.reason
    assert first(Replica("a", 4, 10, 0.99), Replica("b", 0, 10, 0.1), cached=cached) == "b"
    assert first(Replica("a", 10, 10, 0.0), Replica("b", 9, 10, 0.9), cached={"a": 1.0}) == "b"


def test_what_is_stale_counts_as_bad_and_if_all_is_their_load_decides() -> None:
    old = STALE_AFTER_S + 1
    assert first(Replica("a", 0, 10, 0.0, old), Replica("b", 8, 10, 0.9)) == "b"
    choice = choose_replica([Replica("a", 3, 10, 0.0, old), Replica("b", 2, 10, 0.9, old)], {}, {})
    assert choice.order == ("b", "a")
    assert choice.reason == "nothing recent is known of any"


def test_requests_that_come_together_are_spread() -> None:
    replicas, turns, seen = [Replica(name, 0, 10, 0.0) for name in "abc"], {}, Counter[str]()
    for number in range(9):
        chosen = choose_replica(replicas, {}, turns).order[0]
        turns[chosen] = number + 1
        seen[chosen] += 1
    assert seen == {"a": 3, "b": 3, "c": 3}


@given(MANY, CACHED)
def test_every_replica_once_and_the_same_again(replicas: list[Replica], cached: dict[str, float]) -> None:
    choice = choose_replica(replicas, cached, {})
    assert sorted(choice.order) == sorted(replica.name for replica in replicas)
    assert choose_replica(replicas, cached, {}) == choice
    assert choice.reason


@given(MANY, CACHED)
def test_never_a_full_one_before_one_with_room(replicas: list[Replica], cached: dict[str, float]) -> None:
    by_name = {replica.name: replica for replica in replicas}
    full = [by_name[name].load >= by_name[name].places for name in choose_replica(replicas, cached, {}).order]
    assert full == sorted(full)
