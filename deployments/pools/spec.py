"""What the parts of a model's expert pools are told when they start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.config.model import ModelConfig
from cluster.config.operations import TelemetryConfig
from cluster.config.pools import PoolsConfig
from deployments.experts.trunk_files import TrunkFiles

_FOLDER = "pools"


@dataclass(frozen=True, slots=True)
class PoolsSpec:
    """The pools of one model."""

    model: str
    config: ModelConfig
    path: Path | None
    """Folder of the checkpoint; None: a simulated model."""
    telemetry: TelemetryConfig
    state_dir: Path
    application: str
    """Serve application of the pools."""

    @property
    def pools(self) -> PoolsConfig:
        """Their config. Raises `ValueError` if the model has none."""
        if self.config.pools is None:
            raise ValueError(f"model {self.model!r} has no pools")
        return self.config.pools

    @property
    def names(self) -> tuple[str, ...]:
        """Of all pools."""
        return tuple(str(number) for number in range(self.pools.count))


def pools_folder(state_dir: Path) -> Path:
    """Where sockets, pool maps and the secret are."""
    return state_dir / _FOLDER


def secret_path(state_dir: Path) -> Path:
    """The secret that trunks and pools of a cluster have to know."""
    return pools_folder(state_dir) / "secret"


def trunk_files(state_dir: Path, replica: str, pools: PoolsConfig) -> TrunkFiles:
    """Those of the trunk that one replica of a model runs."""
    return TrunkFiles(
        map=pools_folder(state_dir) / f"{replica}.map.json",
        secret=secret_path(state_dir),
        answer_s=pools.answer_s,
        outage_s=pools.outage_s,
        wake_s=pools.wake_s,
    )
