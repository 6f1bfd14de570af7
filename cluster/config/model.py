"""One model of the portfolio: what it is, what runs it, and how many replicas of it there are."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, model_validator

from cluster.config.base import EnvironmentName, Kind, Role, Section
from cluster.config.engine import EngineConfig, EngineType
from cluster.config.pools import PoolsConfig
from cluster.config.precision import ModelPrecisionConfig
from cluster.config.scaling import ScalingConfig

DEFAULT_ENGINE: Final = {
    Kind.DENSE: EngineType.VLLM,
    Kind.SPARSE: EngineType.VLLM,
    Kind.MINI: EngineType.VLLM,
    Kind.ENCODER: EngineType.ENCODER,
    Kind.EXTERNAL: EngineType.EXTERNAL,
}

SOURCE_PATTERN: Final = (
    r"^(embedded:[a-z0-9][a-z0-9._-]{0,63}"
    r"|hf:[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}(@[A-Za-z0-9][A-Za-z0-9._/-]{0,127})?"
    r"|path:/.{1,4000})$"
)


Fraction = Annotated[float, Field(ge=0, le=1)]
CalibrationPoint = tuple[Fraction, Fraction]


class ReplicaConfig(Section):
    """How many replicas a model has, what each takes of a machine, and when it counts as too slow."""

    min: int = Field(1, ge=0, le=10_000)
    """Replicas kept at least; 0: none while nobody asks for the model, and the first request has one started."""
    max: int = Field(1, ge=1, le=10_000)
    """Replicas allowed at most; equal to `min`: a fixed number, no autoscaling."""
    target_ongoing_requests: float = Field(16.0, gt=0, le=100_000)
    """Requests in flight per replica that autoscaling aims at."""
    scaling: ScalingConfig = ScalingConfig()
    """What else it aims at, and how fast it acts."""
    max_ongoing_requests: int = Field(64, ge=1, le=100_000)
    """Requests in flight that a replica takes at most."""
    max_queued_requests: int = Field(128, ge=0, le=1_000_000)
    """Requests that wait for a replica at most; one more is answered 429 or 503."""
    cpus: float = Field(1.0, ge=0, le=4096)
    """CPU cores that Ray reserves for a replica."""
    gpus: float = Field(0.0, ge=0, le=1024)
    """GPUs that Ray reserves for a replica."""
    memory_bytes: int | None = Field(None, ge=16_777_216, le=2**46)
    """Bytes of memory that Ray reserves for a replica; null: none reserved."""
    cpu_cores: str | None = Field(None, pattern=r"^[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?){0,63}$")
    """Core numbers that the engine's threads are bound to, for example `0` or `0-1`; null: not bound."""
    omp_threads: int = Field(1, ge=1, le=1024)
    """Threads that the engine computes with on a CPU."""
    nice: int = Field(0, ge=0, le=19)
    """Niceness of the replica's processes (0 highest priority, 19 lowest)."""
    start_timeout_s: float = Field(300.0, gt=0, le=86_400)
    """Seconds that loading the model may take."""
    drain_timeout_s: float = Field(30.0, ge=0, le=86_400)
    """Seconds that a replica which is to stop may take to finish its requests."""
    stall_timeout_s: float = Field(3.0, gt=0, le=3600)
    """Seconds after which an engine process that neither answers a heartbeat nor computes counts as hung.

    One that computes, and an engine without a process of its own, is given 60 seconds, or this if it is longer.
    """


class UpstreamConfig(Section):
    """The OpenAI-compatible server behind an external model."""

    base_url: str = Field(min_length=1, max_length=2048)
    """URL that `/chat/completions` is appended to; https, or http on loopback; without user name or password."""
    api_key_env: EnvironmentName | None = None
    """Name of the environment variable that holds the upstream's key; null: no key is sent."""
    model: str = Field(min_length=1, max_length=256, pattern=r"^[A-Za-z0-9~][A-Za-z0-9._:/@+-]*$")
    """Name of the model as the upstream knows it."""
    timeout_s: float = Field(120.0, gt=0, le=86_400)
    """Seconds that a whole request may take."""
    connect_timeout_s: float = Field(5.0, gt=0, le=600)
    """Seconds that connecting may take."""
    max_concurrency: int = Field(64, ge=1, le=100_000)
    """Requests in flight to the upstream at most, per replica."""
    forward_trace_context: bool = False
    """True sends `traceparent` along, which tells the upstream of the caller's trace (yes or no, no unit)."""


class ModelConfig(Section):
    """One model."""

    kind: Kind
    """What the model is made of: dense, sparse (mixture of experts), mini, encoder or external."""
    roles: tuple[Role, ...] = Field(min_length=1, max_length=32)
    """Roles that the model plays, names; rules and contracts refer to these."""
    source: str | None = Field(None, max_length=4096, pattern=SOURCE_PATTERN)
    """Where the weights come from: `embedded:NAME`, `hf:ORG/NAME@REVISION` or `path:/DIRECTORY`; null only for external."""
    engine: EngineConfig = EngineConfig()
    """What runs the model."""
    replicas: ReplicaConfig = ReplicaConfig()
    """How many of it there are."""
    pools: PoolsConfig | None = None
    """Pools that its experts live in, apart from the engine; null: the engine has them itself."""
    precision: ModelPrecisionConfig = ModelPrecisionConfig()
    """What the precision ladder needs to know of it."""
    price_per_million_tokens: float = Field(0.0, ge=0, le=1e6)
    """What a million of its tokens cost, in the money that you count in; routing prefers the cheaper of equals."""
    calibration: tuple[CalibrationPoint, ...] = Field((), max_length=64)
    """Points of raw confidence and share of right answers, both 0 to 1 and never falling; empty: not calibrated."""
    upstream: UpstreamConfig | None = None
    """The server behind an external model; null for all other kinds."""

    @model_validator(mode="after")
    def _derive_engine_type(self) -> ModelConfig:
        """Fills in `engine.type` from `kind`, so that readers always find it set."""
        if "type" not in self.engine.model_fields_set:
            engine = self.engine.model_copy(update={"type": DEFAULT_ENGINE[self.kind]})
            # The model is frozen for its readers; while it is being made, this is the only way in.
            object.__setattr__(self, "engine", engine)
        return self
