"""Tells the caller of a stream what left the sliding window, in the stream's first event.

Response headers of a stream are out before the engine has counted, and clients skip the comment at a stream's end.
"""

from __future__ import annotations

from deployments.engines.protocol import TokenUsage


def with_truncation(event: str, usage: TokenUsage) -> str:
    """The event (`data: {...}` and its line ends) with a `pointsman` member that counts what left; unchanged if nothing did.

    Clients that do not know the member ignore it; OpenAI's keeps it as an extra field of the chunk.
    """
    if not usage.truncated_turns and not usage.truncated_tokens:
        return event
    head, brace, tail = event.rpartition("}")
    told = f',"pointsman":{{"truncated_turns":{usage.truncated_turns},"truncated_tokens":{usage.truncated_tokens}}}'
    return f"{head}{told}{brace}{tail}"
