"""One sequence of tokens in the simulated engine, and the synthetic tokens that continue it."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from typing import Final

VOCABULARY: Final = 10_000
"""Generated tokens are numbers below this; tokens of prompt text lie above."""

_MASK: Final = (1 << 64) - 1


def mix(state: int, value: int) -> int:
    """Fold a number into a 64-bit state (splitmix64, Steele et al. 2014): the same everywhere, in every process."""
    z = (state + value + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


class Sequence:
    """Tokens, how many of them are in the KV cache, and where.

    The next token follows from the seed and all tokens before it, as a model's does: a sequence that starts with what
    another one generated goes on as that one would have.
    """

    __slots__ = (
        "_state",
        "blocks",
        "cached",
        "computed",
        "forced",
        "generated",
        "key",
        "keys",
        "limit",
        "lost",
        "preemptions",
        "reads_cache",
        "recomputed",
        "salt",
        "tape",
        "tokens",
    )

    def __init__(self, key: str, prompt: Tokens[int], limit: int, seed: int, salt: int = 0) -> None:
        if not prompt or limit < 1:
            raise ValueError("a sequence has a prompt of one token or more, and makes one token or more")
        self.key = key
        self.tokens = list(prompt)
        self.limit = limit
        self.salt = salt
        """Sequences share cached blocks only with those of the same salt."""
        self.generated = 0
        self.computed = 0
        self.cached: int | None = None
        """Prompt tokens found in the prefix cache at first admission."""
        self.preemptions = 0
        self.forced = 0
        """Of these, by changes of the pool."""
        self.lost = 0
        """Tokens that were computed when it was preempted; 0 once it is admitted again."""
        self.recomputed = 0
        """Tokens computed again after preemptions."""
        self.blocks: list[int] = []
        self.keys: list[int] = []
        """Content keys of the full blocks, as far as they were asked for."""
        self.reads_cache = True
        """Whether it looks for its prompt in the prefix cache."""
        self.tape: list[int] | None = None
        """Takes every token that is computed, if somebody wants them."""
        self._state = mix(0, seed)
        for token in prompt:
            self._state = mix(self._state, token)

    @property
    def pending(self) -> int:
        """Tokens that are not in the KV cache yet."""
        return len(self.tokens) - self.computed

    @property
    def decoding(self) -> bool:
        """Whether only its newest token is missing from the KV cache."""
        return self.pending == 1 and self.generated > 0

    @property
    def finished(self) -> bool:
        """Whether it made all the tokens it may make."""
        return self.generated >= self.limit

    def advance(self, tokens: int) -> None:
        """So many more of its tokens were computed."""
        if self.tape is not None:
            self.tape += self.tokens[self.computed : self.computed + tokens]
        self.computed += tokens

    def append(self) -> int:
        """Make the next token."""
        token = self._state % VOCABULARY
        self._state = mix(self._state, token)
        self.tokens.append(token)
        self.generated += 1
        return token

    def full_block_keys(self, block_tokens: int, tokens: int) -> list[int]:
        """Content keys of the full blocks within the first `tokens` tokens; each covers all tokens before its end."""
        full = tokens // block_tokens
        while len(self.keys) < full:
            start = len(self.keys) * block_tokens
            parent = self.keys[-1] if self.keys else self.salt
            self.keys.append(hash((parent, *self.tokens[start : start + block_tokens])))
        return self.keys[:full]
