"""Thresholds of the `auto` rule."""

from __future__ import annotations

from pydantic import Field

from cluster.config.base import Role, Section
from cluster.config.feedback import FeedbackConfig


class RoutingConfig(Section):
    """What `model: auto` means: short requests to one role, code to another, everything else to a third."""

    fast_max_prompt_tokens: int = Field(64, ge=0, le=16_777_216)
    """Prompt tokens (estimated) up to which a request counts as short."""
    fast_max_completion_tokens: int = Field(256, ge=0, le=16_777_216)
    """Completion tokens asked for up to which a request counts as bound by latency."""
    fast_role: Role = "fast"
    """Role that takes short requests, a name."""
    code_role: Role = "fluency"
    """Role that takes requests which look like code, a name."""
    default_role: Role = "strong"
    """Role that takes everything else, a name."""
    feedback: FeedbackConfig = FeedbackConfig()
    """What is done about an answer that its model was not sure of."""
