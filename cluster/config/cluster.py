"""The config of a whole cluster."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from cluster.config.admission import AdmissionConfig
from cluster.config.base import ModelName, Role, Section
from cluster.config.checks import check_cluster
from cluster.config.contract import ContractConfig
from cluster.config.deployment import DeploymentConfig
from cluster.config.experts import ExpertsConfig
from cluster.config.host import is_loopback
from cluster.config.ingress import IngressConfig, KeysConfig
from cluster.config.model import ModelConfig
from cluster.config.operations import RayConfig, TelemetryConfig
from cluster.config.precision import PrecisionConfig
from cluster.config.records import RecordsConfig
from cluster.config.routing import RoutingConfig

MISTAKES = "cluster_mistakes"
"""Error type under which the mistakes of the cross-field checks travel through pydantic."""


class ClusterConfig(Section):
    """Everything that an operator decides about a cluster."""

    name: str = Field("pointsman", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    """Name of the cluster, shown in traces and status."""
    models: dict[ModelName, ModelConfig] = Field(min_length=1, max_length=256)
    """The portfolio: models by name."""
    contracts: dict[Role, ContractConfig] = Field({}, max_length=64)
    """Contracts by role; a role without one is bounded by its model alone."""
    ingress: IngressConfig = IngressConfig()
    """Where the cluster listens, and what it takes from a caller."""
    admission: AdmissionConfig = AdmissionConfig()
    """When requests wait, and when they are refused."""
    precision: PrecisionConfig = PrecisionConfig()
    """How far precision is lowered under pressure."""
    experts: ExpertsConfig = ExpertsConfig()
    """When an expert of a sparse model counts as hot, and what is told of experts."""
    keys: KeysConfig = KeysConfig()
    """Who may call."""
    routing: RoutingConfig = RoutingConfig()
    """The `auto` rule."""
    telemetry: TelemetryConfig = TelemetryConfig()
    """Traces and logs."""
    records: RecordsConfig = RecordsConfig()
    """The records database."""
    ray: RayConfig = RayConfig()
    """The Ray cluster underneath."""
    deployment: DeploymentConfig | None = None
    """Where `pointsman render` puts the cluster on Kubernetes; null: it stays on machines of your own."""

    @model_validator(mode="after")
    def _check(self) -> ClusterConfig:
        mistakes = tuple(check_cluster(self))
        if mistakes:
            sentence = "; ".join(str(mistake) for mistake in mistakes)
            raise PydanticCustomError(MISTAKES, "{sentence}", {"sentence": sentence, "mistakes": mistakes})
        return self

    @property
    def keys_required(self) -> bool:
        """Whether a caller needs a key."""
        return self.keys.required if self.keys.required is not None else not is_loopback(self.ingress.host)

    def models_of(self, role: str) -> tuple[str, ...]:
        """Names of the models that play `role`, in the order of the config."""
        return tuple(name for name, model in self.models.items() if role in model.roles)

    def keys_path(self, state_dir: Path) -> Path:
        """Path of the file of hashed keys, given the state directory in force."""
        return Path(self.keys.path).expanduser() if self.keys.path is not None else state_dir / "keys.jsonl"
