import pytest

from loadtests.questions import Item, items


def test_the_same_seed_asks_the_same_and_no_question_twice() -> None:
    asked = items(600, seed=3)
    assert asked == items(600, seed=3)
    assert asked != items(600, seed=4)
    assert len({item.question for item in asked}) == 600
    assert len({item.kind for item in asked}) == 9


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="only"):
        items(1_000_000)


@pytest.mark.parametrize(
    ("right", "answer", "expected"),
    [
        ("(?:Paris)", "The capital of France is Paris.", True),
        ("(?:Paris)", "It is in the Parisian basin.", False),
        ("42", "42", True),
        ("42", "The answer is 42.", True),
        ("42", "142", False),
        ("42", "42.5", False),
        ("4", "-4 or 3.4", True),
        (r"[\"']?a[\"']?\.?$", "It is a letter of the word.", False),
        (r"[\"']?a[\"']?\.?$", 'The third letter is "a".', True),
        (r"garden,?\s+window", "Garden, window", True),
    ],
)
def test_answers_are_checked_as_whole_words(right: str, answer: str, expected: bool) -> None:
    assert Item("kind", "?", right).is_right(answer) is expected
