"""What a replica is told when it starts, and what an ingress sends it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.config.model import ModelConfig
from cluster.config.operations import TelemetryConfig
from deployments.channel.sender import IngressAddress
from deployments.engines.protocol import EngineRequest


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """One model as its replicas see it."""

    name: str
    model: ModelConfig
    path: Path | None
    """Folder of the checkpoint; None for a model that has none (external, simulated)."""
    telemetry: TelemetryConfig
    state_dir: Path
    pools: str | None = None
    """Serve application of the pools that the model's experts live in; None: its engine has them."""


@dataclass(frozen=True, slots=True)
class ReplicaCall:
    """One request on its way from an ingress to a replica."""

    stream: str
    """The id under which its events go back over the channel."""
    ingress: IngressAddress
    request: EngineRequest
