"""A config with a precision ladder, and a replica's connection that keeps what it is ordered."""

from __future__ import annotations

from typing import Any

from cluster.config.cluster import ClusterConfig
from deployments.channel.messages import Order, _decoder

CHAT = "/v1/chat/completions"


def config(**precision: Any) -> ClusterConfig:
    engine = {"type": "simulated", "max_model_len": 512}
    quality = {"fp8": {"agreement": 0.99, "kl": 0.001, "consistency": 0.9}}
    return ClusterConfig.model_validate(
        {
            "models": {
                "big": {
                    "kind": "dense",
                    "roles": ["strong", "fast"],
                    "source": "embedded:dense",
                    "engine": engine,
                    "precision": {"twin": "small", "kv_quality": quality},
                },
                "small": {"kind": "mini", "roles": ["little"], "source": "embedded:dense", "engine": engine},
            },
            "routing": {"code_role": "strong"},
            "precision": {"dwell_s": 10, "window_s": 2, "stagger_s": 3, **precision},
        }
    )


class Connected:
    """A replica's connection, and the orders that went over it."""

    def __init__(self) -> None:
        self.orders: list[Order] = []

    def is_closing(self) -> bool:
        return False

    def write(self, frame: bytes) -> None:
        self.orders += [one for one in _decoder.decode(frame[4:]) if isinstance(one, Order)]
