"""What a role promises its callers, and what it asks of them."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pydantic import Field

from cluster.config.base import ModelName, Section


class Sampling(StrEnum):
    """Who decides how tokens are drawn."""

    DETERMINISTIC = "deterministic"
    STOCHASTIC = "stochastic"
    CALLER = "caller"


DEFAULT_TIMEOUT_S: Final = 120.0


class ContractConfig(Section):
    """The contract of one role. Enforced before any token is computed."""

    max_prompt_tokens: int = Field(ge=1, le=16_777_216)
    """Tokens that a prompt may have. Far more bytes are refused unread; the engine's tokenizer decides the rest."""
    max_completion_tokens: int = Field(ge=1, le=16_777_216)
    """Tokens that a completion may have; what a caller who names no number gets at most."""
    latency_target_s: float = Field(2.0, gt=0, le=86_400)
    """Seconds to the first token (TTFT) that the role aims at."""
    sampling: Sampling = Sampling.CALLER
    """`deterministic`: temperature 0 and a fixed seed; `stochastic`: temperature above 0; `caller`: as asked."""
    fallback: tuple[ModelName, ...] = Field((), max_length=16)
    """Roles or models, in order, that take over when no model of the role is healthy."""
    timeout_s: float = Field(DEFAULT_TIMEOUT_S, gt=0, le=86_400)
    """Seconds that a whole request may take."""
