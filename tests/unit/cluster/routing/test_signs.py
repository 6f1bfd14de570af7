import random
import time

import pytest
import re2

from cluster.routing.intent import lexical_intent
from cluster.routing.signs import Signs

SIGNS = Signs([r"(?i)\b(?:capital of|who)\b", r"\d.{1,60}\d", r"(?m);[ \t]*$", r"(?i)\bin (?:c|r)\b"])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Who is it?", [0]),
        ("the CAPITAL OF 1 or 2", [0, 1]),
        ("a;\nb", [2]),
        ("1\n2", []),
        ("in C", [3]),
        ("hotels in C\u00e1diz, a town in R\u00e9union", []),
        ("who\u00e9", []),
        ("\ud800 who", [0]),
        ("", []),
    ],
)
def test_what_occurs_is_found(text: str, found: list[int]) -> None:
    assert SIGNS.found(text) == found


def test_a_pattern_that_cannot_run_in_linear_time_is_refused() -> None:
    with pytest.raises(re2.error):
        Signs([r"(?=look)"])
    with pytest.raises(re2.error):
        Signs([r"(a{1,9}) \1"])


def test_an_intent_is_found_in_any_text_however_large_what_is_remembered_grows() -> None:
    # A set of patterns whose automaton grows too large would find nothing from then on.
    letters = "abcdefghij klmnopqrstuvwxyz ,;:.{}()0123456789\n\u00e9\u4e16"
    draw = random.Random(7)
    started = time.thread_time()
    for _ in range(2000):
        lexical_intent("".join(draw.choices(letters, k=900)))
    assert time.thread_time() - started < 4.0
    assert lexical_intent("".join(draw.choices(letters, k=400)) + "\nsummarize the key points").value == "summary"
