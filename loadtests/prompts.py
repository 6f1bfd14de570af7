"""Prompts made from a seed: the same seed and index give the same prompt, different ones share no KV block."""

from __future__ import annotations

import random
from typing import Final

_FORMS: Final = ("long story", "detailed tale", "long adventure story", "chapter of a novel", "long bedtime story")
_HEROES: Final = (
    "lighthouse keeper",
    "clockmaker",
    "ship's cook",
    "young astronomer",
    "retired detective",
    "baker",
    "gardener",
    "mountain guide",
    "librarian",
    "bridge builder",
    "beekeeper",
    "cartographer",
)
_PLACES: Final = (
    "a village by the sea",
    "an old castle",
    "a city of canals",
    "the far north",
    "a desert town",
    "a floating island",
    "a forest that never ends",
    "a railway station",
    "a valley full of mist",
    "a harbour in winter",
)
_EVENTS: Final = (
    "finds a map that nobody can read",
    "hears a bell from under the water",
    "meets a stranger who never sleeps",
    "loses a key that opens everything",
    "receives a letter from the future",
    "learns to speak with birds",
    "must cross a storm before dawn",
    "discovers a room without doors",
    "repairs a machine that remembers",
    "follows a light across the hills",
)


def story_prompt(seed: int, index: int) -> str:
    """Prompt `index` of series `seed`: about 50 tokens, and an answer that runs to any usual `max_tokens`.

    A model that is asked for a long story at temperature 0 does not stop early, so both arms of a comparison generate
    the same number of tokens without an option that a server might refuse. A number stands first, so that two
    prompts differ from their first words on and a prefix cache cannot share their blocks.
    """
    source = random.Random(f"{seed}:{index}")
    number = source.randrange(10**9)
    return (
        f"Story number {number}. Write a {source.choice(_FORMS)} about a {source.choice(_HEROES)} in "
        f"{source.choice(_PLACES)} who {source.choice(_EVENTS)}. Describe the place, the weather and the people at "
        "length, and tell every step of what happens."
    )


def long_prompt(seed: int, index: int, words: int) -> str:
    """A prompt of about `words` words, unlike every other from its first words on; it measures prefill."""
    source = random.Random(f"long:{seed}:{index}")
    text = ["Report", "number", f"{source.randrange(10**9)}."]
    while len(text) < words:
        text.append(source.choice(_HEROES).split()[-1])
        text.append(source.choice(_PLACES).split()[-1])
        text.append(source.choice(_EVENTS).split()[0])
    return " ".join(text[:words])
