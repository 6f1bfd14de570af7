"""Telemetry and the Ray cluster underneath."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cluster.config.base import Section


class TelemetryConfig(Section):
    """Traces and logs. Standard `OTEL_*` variables win over `sample_ratio` and `service_name`.

    They also name a collector, which gets traces beside the local store; `traces: off` stays off. See docs/tracing.md.
    """

    traces: Literal["store", "otlp", "off"] = "store"
    """`store` keeps traces in a local file for `pointsman trace`, `otlp` sends them to a collector, `off` makes none."""
    store_max_spans: int = Field(200_000, ge=1000, le=100_000_000)
    """Spans that the local store keeps (a count); the oldest leave first."""
    sample_ratio: float = Field(1.0, ge=0, le=1)
    """Fraction of the traces started here that are kept, 0 to 1."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is logged."""
    service_name: str = Field("pointsman", min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the service in traces."""


class RayConfig(Section):
    """The Ray cluster that the actors run on."""

    address: str | None = Field(None, max_length=512, pattern=r"^[A-Za-z0-9\[][A-Za-z0-9.:/_\[\]-]*$")
    """Address of a Ray cluster that runs already; null: one is started on this machine."""
    num_cpus: int | None = Field(None, ge=1, le=4096)
    """CPU cores that an own Ray cluster offers; null: those of the machine."""
    object_store_bytes: int = Field(134_217_728, ge=78_643_200, le=2**44)
    """Bytes of an own Ray cluster's object store."""
    state_dir: str | None = Field(None, min_length=1, max_length=4096, pattern=r"^(/|~/).*$")
    """Path of the directory for keys, traces and process ids; null: the user's state directory."""
    health_check_period_s: float = Field(1.0, gt=0, le=600)
    """Seconds between health checks of a replica."""
    health_check_timeout_s: float = Field(3.0, gt=0, le=600)
    """Seconds that a health check may take."""
