from __future__ import annotations

import json

from deployments.engines.kv_precision import KvSwitch
from loadtests.kv_switch import Measured, _measured, tables
from loadtests.kv_switching import Change, Round, Score, Stream, in_flight_prompt


def event(*ids: int, text: str = "", prompt: list[int] | None = None) -> bytes:
    told = {"choices": [{"delta": {"content": text}, "token_ids": list(ids) or None}]}
    return b"data: " + json.dumps(told | ({"prompt_token_ids": prompt} if prompt else {})).encode() + b"\n\n"


def test_a_stream_takes_in_its_events() -> None:
    stream = Stream("Hi")
    stream.take(event(prompt=[7, 8]))
    stream.take(event(1, text="a") + event(2, 3, text="bc"))
    assert (stream.prompt_ids, stream.ids, stream.text) == ([7, 8], [1, 2, 3], "abc")
    # One arrival for each event with tokens; the first has none.
    assert len(stream.arrivals) == 2


def test_the_gap_of_a_change_is_the_longest_that_reaches_into_it() -> None:
    stream = Stream("Hi", arrivals=[1.0, 1.1, 2.0, 2.1, 9.0])
    assert stream.gap_over(1.05, 1.06) == stream.arrivals[1] - 1.0
    # The last step before the change ended within it; the gap is the one after that.
    assert stream.gap_over(1.05, 1.2) == 2.0 - 1.1
    assert stream.gap_over(2.05, 2.2) == 9.0 - 2.1
    assert stream.gap_over(9.5, 9.6) is None
    assert stream.longest_gap(1.0, 2.1) == 2.0 - 1.1
    assert stream.longest_gap(1.0, 1.05) == 0.0


def test_prompts_repeat_and_differ_from_their_first_words_on() -> None:
    assert in_flight_prompt(1, 2) == in_flight_prompt(1, 2)
    assert len({in_flight_prompt(seed, n)[:25] for seed in range(3) for n in range(16)}) == 48


def one(ids: list[int], arrivals: list[float]) -> Stream:
    return Stream("Hi", arrivals=arrivals, ids=ids)


def measured() -> Measured:
    def change(after: str, pause_s: float, gaps_s: tuple[float, ...]) -> Change:
        down = after == "fp8"
        switch = KvSwitch("bfloat16" if down else "fp8", after, pause_s, 2, 100, *((10, 20) if down else (20, 10)))
        return Change(switch, gaps_s, ((1, 2), (1, 3)))

    changed = Round(
        (one([1, 2, 3, 4], [0.0]), one([1, 3, 5, 6], [0.0])),
        (change("fp8", 0.04, (2.0, 3.0)), change("bfloat16", 0.05, (4.0, 1.0))),
        0.2,
    )
    never = Round((one([1, 2, 3, 9], [0.0]), one([1, 3, 5, 6], [0.0])), (), 0.1)
    scores = [[Score(-0.5, 0.9), Score(-0.3, 1.0)], [Score(-0.4, 1.0), Score(-0.4, 1.0)]]
    return _measured([changed], [never], scores, 8, (2**20, 200, 30))


def test_figures_are_put_together() -> None:
    found = measured()
    assert (found.own, found.requests, found.tokens) == ("bfloat16", 2, 8)
    assert (found.same_until_change, found.same_to_the_end) == (2, 1)
    assert (found.down.stream_gap_max_s, found.up.stream_gap_max_s) == (3.0, 4.0)
    assert (found.down.blocks_before, found.down.blocks_after, found.up.blocks_after) == (10, 20, 10)
    assert abs(found.switched.mean_logprob - found.never.mean_logprob) < 1e-9
    assert abs(found.logprob_difference.median) < 1e-9
    assert (found.switched.greedy_share, found.never.greedy_share) == (0.95, 1.0)


def test_tables_have_a_row_for_each_figure() -> None:
    cost, kept = tables(measured())
    assert cost.row_count == 9
    assert kept.row_count == 8
