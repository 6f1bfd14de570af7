"""The sliding window over a chat: which turns stay when a sequence may hold only so many tokens.

System messages and the last user turn stay; the oldest turns leave first. A user message leaves with all that answers it, so
no answer is left without its question and no tool result without its call. What leaves is counted, never silent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.api.errors import ApiError


@dataclass(frozen=True, slots=True)
class Turn:
    """One message as the window sees it."""

    role: str
    """system, developer, user, assistant or tool."""
    tokens: int
    """Tokens that it adds to the rendered prompt, the chat template's included."""


@dataclass(frozen=True, slots=True)
class WindowDecision:
    """What stays."""

    kept: tuple[int, ...]
    """Indices of the messages that stay, in order."""
    truncated_turns: int
    """Messages that leave (a count)."""
    truncated_tokens: int
    prompt_tokens: int
    """Tokens of what stays, `overhead` included."""
    reason: str


def slide(turns: Sequence[Turn], window: int, room: int, overhead: int = 0) -> WindowDecision:
    """Which of `turns` stay so that prompt and completion hold in `window` tokens.

    `room` tokens are kept free for the completion; `overhead` tokens come on top of the turns (tool definitions, the
    start of the answer). Raises `ApiError` 400 if what has to stay does not fit, naming the sizes.
    """
    pinned = _pinned(turns)
    budget = window - room - overhead
    needed = sum(turns[index].tokens for index in pinned)
    if needed > budget:
        message = (
            f"The system message and the last turn have {needed} tokens; with {room} for the completion and {overhead} "
            f"around them they do not fit the window of {window} tokens. Shorten them or lower `max_tokens`."
        )
        raise ApiError(400, "context_length_exceeded", message, param="messages")
    kept = set(pinned)
    used = needed
    # From the newest group to the oldest; the first that does not fit ends it, so that no hole is left in the chat.
    for group in reversed(_groups(turns, pinned)):
        size = sum(turns[index].tokens for index in group)
        if used + size > budget:
            break
        kept.update(group)
        used += size
    dropped = [turn.tokens for index, turn in enumerate(turns) if index not in kept]
    reason = (
        f"{len(dropped)} older turns left the window of {window} tokens" if dropped else "everything fits the window"
    )
    return WindowDecision(tuple(sorted(kept)), len(dropped), sum(dropped), used + overhead, reason)


def _pinned(turns: Sequence[Turn]) -> frozenset[int]:
    """System messages at any place, and the last user message with all that follows it."""
    systems = {index for index, turn in enumerate(turns) if turn.role in ("system", "developer")}
    users = [index for index, turn in enumerate(turns) if turn.role == "user"]
    last = users[-1] if users else _start_of_last_group(turns)
    return frozenset(systems | set(range(last, len(turns))))


def _start_of_last_group(turns: Sequence[Turn]) -> int:
    start = len(turns) - 1
    while start > 0 and turns[start].role == "tool":
        start -= 1
    return max(0, start)


def _groups(turns: Sequence[Turn], pinned: frozenset[int]) -> list[list[int]]:
    """What may leave, oldest first: a user message with the answers, tool calls and results up to the next one.

    They leave together, since many chat templates refuse a chat that starts with an answer.
    """
    groups: list[list[int]] = []
    for index, turn in enumerate(turns):
        if index in pinned:
            continue
        if turn.role != "user" and groups:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
