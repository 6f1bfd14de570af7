import time

from hypothesis import given
from hypothesis import strategies as st

from cluster.api.json_body import JsonObject
from cluster.routing.prefixes import MAX_PIECES, PrefixIndex, prefixes_of

LONG = "word " * 60
"""Long enough to be worth going back for."""


def chat(*contents: str) -> JsonObject:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[at % 2], "content": content} for at, content in enumerate(contents)]}


def keys(body: JsonObject, tenant: str = "") -> list[bytes]:
    return [prefix.key for prefix in prefixes_of(body, (tenant,))]


def test_a_longer_chat_begins_with_the_prefixes_of_the_shorter_one() -> None:
    shorter, longer = keys(chat(LONG, "Hi")), keys(chat(LONG, "Hi", "And now?"))
    assert longer[:2] == shorter
    assert len(set(longer)) == 3
    assert prefixes_of(chat("a" * 300, "b" * 300), ())[-1].share == 1.0


def test_another_beginning_another_role_and_another_tenant_share_nothing() -> None:
    own = set(keys(chat(LONG, "Hi")))
    assert own.isdisjoint(keys(chat(LONG.upper(), "Hi")))
    assert own.isdisjoint(keys({"messages": [{"role": "system", "content": LONG}]}))
    assert own.isdisjoint(keys(chat(LONG, "Hi"), tenant="other"))


def test_text_prompts_and_parts_are_cut_into_pieces_and_token_ids_have_none() -> None:
    long = keys({"prompt": "x" * 5000})
    assert len(long) == 3
    assert keys({"prompt": "x" * 4096})[:2] == long[:2]
    assert len(keys({"messages": [{"role": "user", "content": [{"type": "text", "text": LONG}]}]})) == 1
    assert keys({"prompt": [1, 2, 3]}) == keys({}) == keys({"messages": []}) == []


def test_what_is_short_is_not_worth_it() -> None:
    assert keys(chat("Hello", "Hi")) == []
    assert len(keys(chat("Hello", LONG))) == 1


def test_an_index_knows_who_served_how_much() -> None:
    index = PrefixIndex()
    first, second = prefixes_of(chat("a" * 300), ()), prefixes_of(chat("a" * 300, "b" * 290), ())
    index.note(first, "one")
    index.note(second, "two")
    shares = index.cached(prefixes_of(chat("a" * 300, "b" * 290, "c"), ()))
    assert shares["two"] > 0.9
    assert 0.4 < shares["one"] < 0.6
    index.keep(frozenset({"one"}))
    assert set(index.cached(second)) == {"one"}


def test_an_index_is_bounded() -> None:
    index = PrefixIndex(max_entries=10)
    for number in range(100):
        index.note(prefixes_of(chat(f"chat {number} {LONG}"), ()), f"replica {number}")
    assert len(index._holders) == 10
    assert index.cached(prefixes_of(chat(f"chat 0 {LONG}"), ())) == {}
    assert index.cached(prefixes_of(chat(f"chat 99 {LONG}"), ())) == {"replica 99": 1.0}


@given(st.lists(st.text(max_size=50), max_size=80))
def test_any_text_and_never_too_many(contents: list[str]) -> None:
    made = prefixes_of(chat(*contents), ("tenant",))
    assert len(made) <= MAX_PIECES
    assert all(0 < prefix.share <= 1 for prefix in made)


def test_a_huge_prompt_costs_no_more_than_its_beginning() -> None:
    started = time.perf_counter()
    assert len(prefixes_of({"prompt": "x" * 500_000}, ())) == MAX_PIECES
    assert time.perf_counter() - started < 0.1
