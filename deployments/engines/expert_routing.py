"""What an engine tells of experts: the part that is the same for all engines that tell nothing."""

from __future__ import annotations

from cluster.experts.load import ExpertLoad

NO_EXPERTS = "the model has no experts"


class NoExpertLoad:
    """An engine that does not tell which experts its tokens go to."""

    expert_blockers: tuple[str, ...] = (NO_EXPERTS,)
    """Why it does not, each by name."""

    def expert_load(self) -> ExpertLoad | None:
        """None: it does not tell."""
        return None
