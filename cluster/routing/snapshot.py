"""What is known of the models at one moment. A decision looks at nothing else of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ModelState:
    """One model: its replicas, how busy they are, and how its last answers were."""

    ready_replicas: int
    reason: str = ""
    """Why none is ready, for people."""
    running: float | None = None
    """Requests in the running batch, mean of the ready replicas; None: not told."""
    waiting: float | None = None
    """Requests queued inside the engine, likewise."""
    kv_usage: float | None = None
    """Fraction of KV blocks in use, likewise, 0 to 1."""
    load_age_s: float = 0.0
    """Seconds since the oldest of these was true."""
    ttft_s: float | None = None
    """Seconds to the first token, moving average of the last answers; None: no answer yet."""
    confidence: Mapping[str, float] = field(default_factory=dict)
    """Moving average of the confidence in its answers, by intent, 0 to 1."""
    parked: bool = False
    """Whether it has no replica because nobody asked for it, or one is being started."""
    start_s: float | None = None
    """Seconds until a parked model should have one if it is asked for now; None: not parked."""

    impaired: str = ""
    """Why its answers would be worse than usual now, for people; empty: they would not."""

    @property
    def healthy(self) -> bool:
        """Whether a request can be served."""
        return self.ready_replicas > 0


Snapshot = Mapping[str, ModelState]
"""States by model. A model that is not in it counts as healthy, and nothing is known of its load."""

UNKNOWN = ModelState(1)
"""What is taken of a model that a snapshot does not hold."""
