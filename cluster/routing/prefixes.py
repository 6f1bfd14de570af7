"""Who has served the beginning of a prompt before. Only hashes are kept, salted so that nothing is found across tenants."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from cluster.api.json_body import JsonObject, JsonValue

MAX_PIECES: Final = 64
"""Pieces of a prompt that are looked at; a longer one counts as far as these go."""
PIECE_BYTES: Final = 2048
"""Bytes of a piece of plain text. Messages of a chat are pieces of their own."""
MIN_BYTES: Final = 256
"""Bytes from which a prefix is worth going back for: about 64 tokens. Engines cache whole blocks of 16 to 128."""
MAX_HASHED_BYTES: Final = 131_072
"""Bytes of a prompt that are looked at."""
MAX_ENTRIES: Final = 16_384
"""Prefixes remembered; the least recently used leave first."""
HOLDERS: Final = 3
"""Replicas remembered of a prefix, the latest first."""


class Prefix(NamedTuple):
    """The beginning of a prompt."""

    key: bytes
    share: float
    """Of the bytes of the prompt, 0 to 1."""


def prefixes_of(body: JsonObject, salt: Sequence[str]) -> tuple[Prefix, ...]:
    """Prefixes of a request's prompt, the shortest first; none of what is no text.

    Each key is a hash of all that comes before, chained as vLLM chains those of its blocks, and of `salt`: what must never
    be shared, such as the tenant. Costs at most `MAX_HASHED_BYTES`.
    """
    pieces = list(_pieces(body))
    whole = sum(len(piece) for piece in pieces)
    if not whole:
        return ()
    key = hashlib.blake2b("\0".join(salt).encode(errors="replace"), digest_size=16).digest()
    seen, made = 0, []
    for piece in pieces[:MAX_PIECES]:
        seen += len(piece)
        if seen > MAX_HASHED_BYTES:
            break
        key = hashlib.blake2b(piece, key=key, digest_size=16).digest()
        if seen >= MIN_BYTES:
            made.append(Prefix(key, seen / whole))
    return tuple(made)


def _pieces(body: JsonObject) -> Iterator[bytes]:
    messages, prompt = body.get("messages"), body.get("prompt")
    if isinstance(messages, list):
        for message in messages:
            if isinstance(message, dict):
                yield f"{message.get('role')}\0{_text(message.get('content'))}".encode(errors="replace")
    elif isinstance(prompt, str):
        text = prompt.encode(errors="replace")
        for at in range(0, len(text), PIECE_BYTES):
            yield text[at : at + PIECE_BYTES]


def _text(content: JsonValue) -> str:
    """The text of a message, of whatever parts it consists."""
    if isinstance(content, list):
        return "\0".join(str(part.get("text")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


class PrefixIndex:
    """Which replicas served which prefixes last. Bounded, for one model."""

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._holders: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()

    def cached(self, prefixes: Sequence[Prefix]) -> dict[str, float]:
        """Share of the prompt that each replica has served before, 0 to 1, by name."""
        shares: dict[str, float] = {}
        for prefix in prefixes:
            holders = self._holders.get(prefix.key)
            if holders is None:
                break
            for name in holders:
                shares[name] = prefix.share
        return shares

    def note(self, prefixes: Sequence[Prefix], replica: str) -> None:
        """The replica has taken a prompt with these prefixes."""
        for prefix in prefixes:
            earlier = self._holders.pop(prefix.key, ())
            self._holders[prefix.key] = (replica, *(name for name in earlier if name != replica))[:HOLDERS]
        while len(self._holders) > self._max_entries:
            self._holders.popitem(last=False)

    def keep(self, replicas: frozenset[str]) -> None:
        """Forget all replicas but these: what one held went with it."""
        for key, holders in list(self._holders.items()):
            left = tuple(name for name in holders if name in replicas)
            if not left:
                del self._holders[key]
            elif left != holders:
                self._holders[key] = left
