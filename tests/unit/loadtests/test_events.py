from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from deployments.engines.simulated.responses import shown_name
from loadtests.client import Exchange
from loadtests.events import record_of, tokens_per_event
from loadtests.prompts import long_prompt, story_prompt
from loadtests.records import summarise
from loadtests.show import run_table


def text(content: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": content}}]}).encode() + b"\n\n"


USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}\n\ndata: [DONE]\n\n'


def test_an_event_counts_when_its_end_arrives() -> None:
    whole = text("a")
    record = record_of(
        Exchange(
            started=1.0,
            status=200,
            arrivals=[(2.0, whole[:9]), (3.0, whole[9:] + text("b")), (3.5, text("c") + text("d")), (4.0, USAGE)],
            ended=4.0,
        )
    )
    assert record.error is None
    assert record.ttft_s == 2.0
    assert [(arrival.gap_s, arrival.tokens) for arrival in record.arrivals] == [(2.0, 2), (0.5, 2)]
    assert record.tokens_exact
    assert record.e2e_s == 3.0


def test_the_model_is_the_one_that_the_answer_names() -> None:
    def named(model: str) -> Exchange:
        event = {"model": model, "choices": [{"delta": {"content": "a"}}]}
        data = b"data: " + json.dumps(event).encode() + b"\n\n" + USAGE
        return Exchange(started=0.0, status=200, arrivals=[(1.0, data)], ended=1.0)

    real, simulated = (record_of(named(name)) for name in ("dense", shown_name("dense")))
    assert (real.answered_by, simulated.answered_by) == ("dense", "dense (simulated)")
    assert not summarise([real], 1, 0.0).simulated
    both = summarise([real, simulated], 1, 0.0)
    assert both.simulated
    assert both.as_json()["answered_by"] == ("dense", "dense (simulated)")
    table = run_table("run", [("run", both)])
    assert next(iter(zip(*(column.cells for column in table.columns), strict=True))) == (
        "answered by",
        "dense, dense (simulated)",
    )


def test_crlf_events_are_read_too() -> None:
    data = (text("a") + USAGE).replace(b"\n", b"\r\n")
    assert record_of(Exchange(started=0.0, status=200, arrivals=[(1.0, data)], ended=1.0)).error is None


def test_what_is_no_json_is_an_error() -> None:
    record = record_of(Exchange(started=0.0, status=200, arrivals=[(1.0, b"data: {\n\ndata: [DONE]\n\n")], ended=1.0))
    assert record.error == "malformed_event"


def test_merged_tokens_go_to_the_longest_texts() -> None:
    assert tokens_per_event([4, 5, 16, 4], 7) == ([1, 1, 4, 1], False)


def test_the_end_of_sequence_token_needs_no_event() -> None:
    assert tokens_per_event([3, 3, 3], 4) == ([1, 1, 1], True)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(2, 200))
def test_apportioned_tokens_add_up(lengths: list[int], surplus: int) -> None:
    counts, exact = tokens_per_event(lengths, len(lengths) + surplus)
    assert sum(counts) == len(lengths) + surplus
    assert min(counts) >= 1
    assert not exact


def test_prompts_differ_from_the_first_words() -> None:
    prompts = {story_prompt(seed, index) for seed in range(20) for index in range(64)}
    assert len({prompt[:24] for prompt in prompts}) == 20 * 64
    assert len(long_prompt(1, 0, 300).split()) == 300
    assert story_prompt(3, 4) == story_prompt(3, 4)
