"""The answer that rests on retrieved passages alone, for when no model is sure enough of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from cluster.api.answer_knobs import Passage

MAX_PASSAGES: Final = 3
MAX_PASSAGE_CHARS: Final = 600
"""Characters that are quoted of one passage."""

NOTHING_GROUNDED: Final = "There is no grounded answer to this: no model was sure enough of its own, and no passages were given to rest one on."


@dataclass(frozen=True, slots=True)
class TemplateAnswer:
    """What is answered, and the ids of the passages that it rests on."""

    text: str = field(repr=False)
    citations: tuple[str, ...]


def template_answer(passages: Sequence[Passage]) -> TemplateAnswer:
    """Quotes the passages that fit best, each with its id in brackets, and says nothing of its own.

    The best come first: by score, those without one last, of equals the first given. Without any text to quote it says
    that there is no grounded answer.
    """
    ranked = sorted(
        (passage for passage in passages if passage.text.strip()),
        key=lambda passage: float("-inf") if passage.score is None else passage.score,
        reverse=True,
    )[:MAX_PASSAGES]
    if not ranked:
        return TemplateAnswer(NOTHING_GROUNDED, ())
    quotes = "\n".join(f"- {_quote(passage.text)} [{passage.id}]" for passage in ranked)
    cited = tuple(passage.id for passage in ranked)
    return TemplateAnswer(f"No model was sure enough of an answer of its own. The passages given say:\n{quotes}", cited)


def _quote(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= MAX_PASSAGE_CHARS else flat[: MAX_PASSAGE_CHARS - 1] + "…"
