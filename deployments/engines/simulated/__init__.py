"""A deterministic engine without a model: the timing, queueing and memory of a real one, and synthetic text."""

from deployments.engines.simulated.engine import SimulatedEngine

__all__ = ["SimulatedEngine"]
