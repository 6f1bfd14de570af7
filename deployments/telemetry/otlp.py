"""Sending spans to an OpenTelemetry collector, as the standard environment variables say.

The exporters are imported when they are asked for: gRPC alone costs 0.2 s of every process's start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit

from opentelemetry.sdk.trace.export import SpanExporter

ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
PROTOCOL: Final = "OTEL_EXPORTER_OTLP_PROTOCOL"
TRACES_PROTOCOL: Final = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
TRACES_EXPORTER: Final = "OTEL_TRACES_EXPORTER"


class TelemetryConfigError(ValueError):
    """The telemetry settings or the `OTEL_*` variables cannot be followed. The message names the one and a remedy."""


class Protocol(StrEnum):
    """How OTLP travels."""

    GRPC = "grpc"
    HTTP = "http/protobuf"


@dataclass(frozen=True, slots=True)
class OtlpTarget:
    """Where spans go. Headers, certificates, compression and time limits are read by the exporter itself."""

    endpoint: str
    """The value of the variable, credentials in it included: not for logs."""
    protocol: Protocol


def otlp_target(environ: Mapping[str, str]) -> OtlpTarget | None:
    """The collector that the variables name, or None.

    Without a protocol variable, port 4318 and paths ending in `/v1/traces` mean HTTP, anything else gRPC: the
    conventional ports, so that the most common mistake of OTLP set-ups cannot happen.
    Raises `TelemetryConfigError`.
    """
    exporters = {name.strip() for name in environ.get(TRACES_EXPORTER, "otlp").lower().split(",")} - {""}
    if unknown := exporters - {"otlp", "none"}:
        raise TelemetryConfigError(f"{TRACES_EXPORTER}={','.join(sorted(unknown))} is not supported: use otlp or none.")
    specific, general = environ.get(TRACES_ENDPOINT, "").strip(), environ.get(ENDPOINT, "").strip()
    endpoint = specific or general
    if not endpoint or "none" in exporters:
        return None
    variable = TRACES_ENDPOINT if specific else ENDPOINT
    asked = (environ.get(TRACES_PROTOCOL, "").strip() or environ.get(PROTOCOL, "").strip()).lower()
    if asked and asked not in set(Protocol):
        raise TelemetryConfigError(f"{TRACES_PROTOCOL}={asked} is not supported: use {' or '.join(Protocol)}.")
    protocol = Protocol(asked) if asked else _conventional(endpoint, variable)
    if protocol is Protocol.HTTP and urlsplit(endpoint).scheme not in {"http", "https"}:
        raise TelemetryConfigError(f"{variable} must begin with http:// or https:// for {Protocol.HTTP}.")
    return OtlpTarget(endpoint, protocol)


def make_exporter(target: OtlpTarget) -> SpanExporter:
    """An exporter for the target; what it sends and how follows the environment of this process."""
    if target.protocol is Protocol.GRPC:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    return HttpExporter()


def _conventional(endpoint: str, variable: str) -> Protocol:
    try:
        parts = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}")
        port = parts.port
    except ValueError:
        raise TelemetryConfigError(f"{variable} is no valid address; one looks like http://localhost:4317.") from None
    return Protocol.HTTP if port == 4318 or parts.path.rstrip("/").endswith("/v1/traces") else Protocol.GRPC
