"""Checks on `routing.feedback`: every name leads to a model that chats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cluster.config.base import EMBEDDING_ROLE, Kind
from cluster.config.mistakes import Mistake

if TYPE_CHECKING:
    from cluster.config.cluster import ClusterConfig

_PATH = "routing.feedback"


def check_feedback(config: ClusterConfig, roles: set[str]) -> Iterator[Mistake]:
    """Mistakes in `routing.feedback`; `roles` are those that some model plays.

    The roles of the verifier and of two-stage answers need no model: a request that needs one is told so.
    """
    feedback = config.routing.feedback
    for index, target in enumerate(feedback.escalate_to):
        path = f"{_PATH}.escalate_to.{index}"
        model = config.models.get(target)
        if model is None and target not in roles:
            yield Mistake(path, f"{target} is neither a model nor a role of one", "name a model or a role that one has")
        elif target == EMBEDDING_ROLE or (model is not None and model.kind is Kind.ENCODER):
            yield Mistake(path, "an encoder cannot chat", "name another")
        elif target in feedback.escalate_to[:index]:
            yield Mistake(path, f"{target} stands here twice", "leave one out")
    for name, threshold in feedback.thresholds.items():
        path = f"{_PATH}.thresholds.{name}"
        if name not in config.models and name not in roles:
            yield Mistake(path, f"{name} is neither a model nor a role of one", "name a model or a role that one has")
        if not 0 <= threshold <= 1:
            yield Mistake(path, "a confidence is 0 to 1", "choose a number in between")
    for field in ("verifier_role", "facts_role", "fluency_role"):
        if getattr(feedback, field) == EMBEDDING_ROLE:
            yield Mistake(f"{_PATH}.{field}", "the embedding role cannot chat", "name a role of a chat model")
