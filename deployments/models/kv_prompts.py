"""Prompts to measure a KV precision with: chat, code and prose that no embedded model was fitted on, short and long.

Errors of a KV cache grow with what is read of it, so a third of the prompts fills several KV blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from deployments.models import text

_Tokenizer: TypeAlias = Any
"""Of transformers, whose methods return unions that depend on their arguments."""

PromptKind = Literal["chat", "code", "prose"]
KINDS: Final[tuple[PromptKind, ...]] = ("chat", "code", "prose")
LENGTHS: Final = (48, 160, 512)
"""Tokens of text in a prompt, in turns. A chat of the first length is a question without a text."""
MAX_PROMPTS: Final = 75
"""As many as the held-out prose is good for."""
_SLACK: Final = 16
"""Tokens that a text may become longer when it is read again inside a chat."""

# None of these is among `conversations.prompts()`, which models are fitted on.
QUESTIONS: Final = (
    "What is the largest desert on Earth?",
    "Explain what a compiler does, in two sentences.",
    "Write a Python function that removes duplicates from a list and keeps their order.",
    "Give me three reasons to ride a bicycle to work.",
    "Why do leaves change their colour in autumn?",
    "Write a short poem about a bridge.",
    "How many minutes are there in three hours?",
    "What is the difference between weather and climate?",
    "Suggest a name for a small bakery, and say why it fits.",
    "Return a JSON object with the keys city and country for Vienna.",
)
TASKS: Final = (
    "What do these records hold? Describe them in two sentences.",
    "List the first three entries of the following.",
    "Which format is this written in, and how can you tell?",
    "Copy the last complete entry of the following.",
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, as a model reads it."""

    kind: PromptKind
    ids: tuple[int, ...]
    """Token ids, those of a chat template included."""


class NotEnoughTextError(ValueError):
    """There is less held-out text than was asked for, or a sequence holds too little of it."""


def make_prompts(folder: Path, count: int, room: int | None, template: str | None = None) -> list[Prompt]:
    """The first `count` prompts for the model in `folder`, each of at most `room` tokens; always the same ones.

    `template` is a chat template that replaces the model's own; a model without any is asked in plain text. `room` is
    None where only the model's own limit counts. Raises `NotEnoughTextError`.
    """
    from transformers import AutoTokenizer

    tokenizer: _Tokenizer = AutoTokenizer.from_pretrained(folder)
    if template is not None:
        tokenizer.chat_template = template
    room = min(room, tokenizer.model_max_length) if room is not None else int(tokenizer.model_max_length)
    if room < 2 * LENGTHS[0]:
        raise NotEnoughTextError(f"a sequence holds {room} tokens of prompt beside the answer, which is too little")
    makers = {
        "chat": _chats(tokenizer, _Passages(tokenizer, "data"), room),
        "code": _passages(tokenizer, "code", room),
        "prose": _passages(tokenizer, "prose", room),
    }
    return [Prompt(kind, next(makers[kind])) for kind in (KINDS[number % len(KINDS)] for number in range(count))]


class _Passages:
    """Cuts held-out text of one kind into passages that follow each other, never twice the same."""

    def __init__(self, tokenizer: _Tokenizer, kind: text.Kind) -> None:
        self._kind = kind
        joined = "\n\n".join(text.documents(kind, "held_out"))
        self._ids: list[int] = tokenizer(joined, add_special_tokens=False)["input_ids"]
        self._next = 0

    def take(self, tokens: int) -> list[int]:
        if self._next + tokens > len(self._ids):
            raise NotEnoughTextError(f"the held-out {self._kind} is too short for so many prompts")
        self._next += tokens
        return self._ids[self._next - tokens : self._next]


def _passages(tokenizer: _Tokenizer, kind: Literal["code", "prose"], room: int) -> Iterator[tuple[int, ...]]:
    passages = _Passages(tokenizer, kind)
    # What the tokenizer puts in front of every text, mostly nothing.
    first = tokenizer("a")["input_ids"][:1]
    begin = first if first == [tokenizer.bos_token_id] else []
    number = 0
    while True:
        yield (*begin, *passages.take(min(LENGTHS[number % len(LENGTHS)], room - len(begin))))
        number += 1


def _chats(tokenizer: _Tokenizer, passages: _Passages, room: int) -> Iterator[tuple[int, ...]]:
    number = 0
    while True:
        length, place = LENGTHS[number % len(LENGTHS)], number // len(LENGTHS)
        if length == LENGTHS[0]:
            yield _asked(tokenizer, QUESTIONS[place % len(QUESTIONS)])
        else:
            task = TASKS[number % len(TASKS)]
            free = room - len(_asked(tokenizer, f"{task}\n\n")) - _SLACK
            yield _asked(tokenizer, f"{task}\n\n{tokenizer.decode(passages.take(max(1, min(length, free))))}")
        number += 1


def _asked(tokenizer: _Tokenizer, question: str) -> tuple[int, ...]:
    if tokenizer.chat_template is None:
        return tuple(tokenizer(question)["input_ids"])
    chat = [{"role": "user", "content": question}]
    return tuple(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"])
