import time

import pytest

from cluster.routing.code_like import code_like


@pytest.mark.parametrize(
    "text",
    [
        "Write a python function that reverses a list.",
        "```\nx = 1\n```",
        "def add(a, b):\n    return a + b",
        "What does this do?\nimport os\nos.remove('x')",
        "#include <stdio.h>\nint main() { return 0; }",
        "const total = items.reduce((a, b) => a + b);",
        "SELECT name FROM users WHERE id = 3",
        "Traceback (most recent call last):\n  File 'x'",
        "Please debug my JavaScript code",
        "for (int i = 0; i < n; i++) {\n  sum += a[i];\n}",
    ],
)
def test_code_and_questions_about_code(text: str) -> None:
    assert code_like(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "What is the capital of France?",
        "Summarise the meeting: we agreed on a budget of 3,000; nobody objected.",
        "Select a few photos from the album and write a caption.",
        "Tell me a story about a python that lived in the jungle.",
        "Let us have a look at the class reunion (it was fun), then import the guests' names.",
        "The function of the heart is to pump blood.",
        "用一句话介绍巴黎。",
    ],
)
def test_prose(text: str) -> None:
    assert not code_like(text)


def test_the_cost_does_not_grow_with_the_text() -> None:
    for text in ("a(" * 250_000, " " * 500_000, "select " * 70_000, "const x" * 70_000, "\n" * 500_000):
        started = time.thread_time()
        code_like(text)
        assert time.thread_time() - started < 0.1
