"""Short questions whose answers a program can check: made from a seed, so that everybody measures on the same ones."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_CAPITALS: Final = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon", "Austria": "Vienna",
    "Poland": "Warsaw", "Greece": "Athens", "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki",
    "Denmark": "Copenhagen", "Ireland": "Dublin", "Hungary": "Budapest", "Russia": "Moscow", "Ukraine": "Kyiv",
    "Turkey": "Ankara", "Egypt": "Cairo", "Kenya": "Nairobi", "Nigeria": "Abuja", "Ethiopia": "Addis Ababa",
    "Morocco": "Rabat", "Japan": "Tokyo", "China": "Beijing", "India": "New Delhi", "Nepal": "Kathmandu",
    "Thailand": "Bangkok", "Vietnam": "Hanoi", "Indonesia": "Jakarta", "Australia": "Canberra", "Canada": "Ottawa",
    "Mexico": "Mexico City", "Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago", "Brazil": "Bras.lia",
    "Argentina": "Buenos Aires", "Iran": "Tehran", "Iraq": "Baghdad", "Mongolia": "Ulaanbaatar",
}  # fmt: skip

_OPPOSITES: Final = {
    "hot": "cold", "big": "small|little", "up": "down", "day": "night", "fast": "slow", "happy": "sad|unhappy", "open": "closed?",
    "light": "dark|heavy", "old": "young|new", "rich": "poor", "hard": "soft|easy", "full": "empty", "early": "late",
    "wet": "dry", "strong": "weak", "long": "short", "true": "false", "loud": "quiet|soft", "inside": "outside",
    "left": "right", "first": "last", "push": "pull", "buy": "sell", "win": "lose", "begin": "end|finish",
}  # fmt: skip

_WORDS: Final = (
    "garden", "window", "bridge", "silver", "market", "planet", "forest", "camera", "pencil", "island", "butter", "castle",
    "engine", "flower", "guitar", "hammer", "jacket", "kitten", "ladder", "mirror", "needle", "orange", "pepper", "rabbit",
    "saddle", "temple", "valley", "winter", "yellow", "zipper",
)  # fmt: skip

_DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MAX_ITEMS: Final = 5000
"""Far fewer than can be made, so that a different one is found soon."""

_ORDINALS: Final = ("first", "second", "third", "fourth", "fifth", "sixth")


@dataclass(frozen=True, slots=True)
class Item:
    """One question. `right` is a regular expression that a right answer holds, whole words, upper or lower case."""

    kind: str
    question: str
    right: str

    def is_right(self, answer: str) -> bool:
        """Whether an answer is right. One that names several candidates is taken by what it says first."""
        return re.search(rf"(?<![\w.]){self.right}(?![\w]|\.\d)", answer.strip(), re.IGNORECASE) is not None


def items(count: int, seed: int = 0) -> list[Item]:
    """`count` different questions of mixed kinds, in a random order that the seed decides. Raises `ValueError` past `MAX_ITEMS`."""
    if count > MAX_ITEMS:
        raise ValueError(f"there are only {MAX_ITEMS} different questions, fewer than {count}")
    source = random.Random(seed)
    made: dict[str, Item] = {}
    while len(made) < count:
        item = source.choice(_MAKERS)(source)
        made[item.question] = item
    return list(made.values())


def _capital(source: random.Random) -> Item:
    country = source.choice(list(_CAPITALS))
    return Item("capital", f"What is the capital of {country}?", f"(?:{_CAPITALS[country]})")


def _sum(source: random.Random) -> Item:
    first, second = source.randint(1, 60), source.randint(1, 60)
    return Item("sum", f"What is {first} + {second}? Answer with the number only.", str(first + second))


def _difference(source: random.Random) -> Item:
    second = source.randint(1, 30)
    first = second + source.randint(1, 30)
    return Item("difference", f"What is {first} - {second}? Answer with the number only.", str(first - second))


def _product(source: random.Random) -> Item:
    first, second = source.randint(2, 12), source.randint(2, 12)
    return Item("product", f"What is {first} times {second}? Answer with the number only.", str(first * second))


def _opposite(source: random.Random) -> Item:
    word = source.choice(list(_OPPOSITES))
    return Item("opposite", f'What is the opposite of "{word}"? Answer with one word.', f"(?:{_OPPOSITES[word]})")


def _letter(source: random.Random) -> Item:
    word, position = source.choice(_WORDS), source.randrange(6)
    question = f'What is the {_ORDINALS[position]} letter of the word "{word}"? Answer with the letter only.'
    # At the end of the answer: `a` and `i` are words, too.
    return Item("letter", question, rf"[\"']?{word[position]}[\"']?\.?$")


def _copy(source: random.Random) -> Item:
    words = " ".join(source.sample(_WORDS, 3))
    return Item("copy", f"Repeat these words exactly: {words}", words.replace(" ", r",?\s+"))


def _after(source: random.Random) -> Item:
    position, later = source.randrange(7), source.randint(1, 3)
    question = f"Which day is {later} day{'s' if later > 1 else ''} after {_DAYS[position]}? Answer with the day only."
    return Item("day", question, _DAYS[(position + later) % 7])


def _next(source: random.Random) -> Item:
    start, step = source.randint(1, 20), source.randint(1, 10)
    shown = ", ".join(str(start + step * number) for number in range(4))
    return Item("series", f"Which number comes next: {shown}? Answer with the number only.", str(start + step * 4))


_MAKERS: Final[tuple[Callable[[random.Random], Item], ...]] = (
    _capital,
    _sum,
    _difference,
    _product,
    _opposite,
    _letter,
    _copy,
    _after,
    _next,
)
