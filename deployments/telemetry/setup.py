"""Makes a process's tracing: one global tracer provider, the exporters behind it, a bounded end.

vLLM makes its request span through the global provider, so this must run before an engine starts.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from opentelemetry import trace
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler, TraceIdRatioBased

from cluster.config.operations import TelemetryConfig
from cluster.telemetry import names
from deployments.paths import traces_path
from deployments.telemetry.content import MAX_CHARS, captures_content
from deployments.telemetry.exporter import BoundedSpanProcessor, SqliteSpanExporter
from deployments.telemetry.otlp import ENDPOINT, TelemetryConfigError, make_exporter, otlp_target
from deployments.telemetry.store import TraceStore

logger = logging.getLogger(__name__)

TRACER_NAME: Final = "pointsman"

_SAMPLER_VARIABLE: Final = "OTEL_TRACES_SAMPLER"
_QUEUE: Final = 4096
_BATCH: Final = 256
_STORE_DELAY_S: Final = 0.2
_OTLP_DELAY_S: Final = 1.0
_SHUTDOWN_S: Final = 2.0

# A span stays small whatever a caller sends or a library records.
_MAX_ATTRIBUTES: Final = 96
_MAX_EVENTS: Final = 64
_MAX_LINKS: Final = 16
_MAX_ATTRIBUTE_CHARS: Final = 1024


@dataclass(frozen=True, slots=True)
class SpanCounts:
    """What became of this process's spans since its start, over all exporters."""

    exported: int = 0
    """Spans that an exporter took."""
    queue_full: int = 0
    """Spans dropped because an exporter did not keep up, or the process was ending."""
    export_failed: int = 0
    """Spans that an exporter could not take: store or collector out of reach, disk full."""

    @property
    def dropped(self) -> int:
        """All spans that were lost."""
        return self.queue_full + self.export_failed


class Telemetry:
    """The tracing of one process. Made by `setup_telemetry`."""

    def __init__(
        self, provider: TracerProvider, processors: tuple[BoundedSpanProcessor, ...], *, captures_content: bool
    ) -> None:
        self.captures_content: Final = captures_content
        """Whether the operator asked for what was said to be recorded on spans."""
        self._provider = provider
        self._processors = processors
        self.tracer: Final = provider.get_tracer(TRACER_NAME)

    @property
    def exporters(self) -> tuple[str, ...]:
        """Where spans go: `store`, `otlp`, both or nothing."""
        return tuple(processor.name for processor in self._processors)

    def counts(self) -> SpanCounts:
        """What became of the spans."""
        return SpanCounts(
            exported=sum(processor.exported for processor in self._processors),
            queue_full=sum(processor.dropped_full for processor in self._processors),
            export_failed=sum(processor.dropped_failed for processor in self._processors),
        )

    def flush(self, timeout_s: float = _SHUTDOWN_S) -> bool:
        """Wait until all spans ended so far are exported; False if that took longer than `timeout_s` seconds.

        Blocks: call it from a thread other than an event loop's.
        """
        deadline = time.monotonic() + timeout_s
        done = True
        for processor in self._processors:
            left = max(0.0, deadline - time.monotonic())
            done = processor.force_flush(int(left * 1000)) and done
        return done

    def close(self, timeout_s: float = _SHUTDOWN_S) -> bool:
        """Export what is queued and stop, within `timeout_s` seconds in all. Idempotent. Blocks like `flush`."""
        deadline = time.monotonic() + timeout_s
        done = [processor.close(max(0.0, deadline - time.monotonic())) for processor in self._processors]
        self._provider.shutdown()
        return all(done)


def setup_telemetry(
    process: str,
    telemetry: TelemetryConfig,
    state_dir: Path,
    *,
    environ: Mapping[str, str] | None = None,
    set_global: bool = True,
) -> Telemetry:
    """Begin tracing in this process.

    `process` is its role, for instance `ingress` or `replica:dense`. All processes of a machine share the store file
    in `state_dir`. Spans are in it about 0.2 s after they end. `set_global` makes the provider the process's
    global one, which can be done once: a second time is logged and leaves the first in place.
    Raises `TelemetryConfigError`.
    """
    environment = os.environ if environ is None else environ
    check_telemetry(telemetry, environment)
    captures = captures_content(environment)
    provider = TracerProvider(
        resource=_resource(process, telemetry),
        sampler=_sampler(telemetry, environment),
        span_limits=_limits(MAX_CHARS if captures else _MAX_ATTRIBUTE_CHARS),
    )
    processors = _processors(telemetry, traces_path(state_dir), environment)
    for processor in processors:
        provider.add_span_processor(processor)
    if set_global:
        trace.set_tracer_provider(provider)
        if trace.get_tracer_provider() is not provider:
            logger.warning("this process has a global tracer provider already; engine spans go there")
    return Telemetry(provider, processors, captures_content=captures)


def check_telemetry(telemetry: TelemetryConfig, environ: Mapping[str, str] | None = None) -> None:
    """Raises `TelemetryConfigError` if `setup_telemetry` would; for the command line, before any process starts."""
    environment = os.environ if environ is None else environ
    captures_content(environment)
    if telemetry.traces != "off" and otlp_target(environment) is None and telemetry.traces == "otlp":
        raise TelemetryConfigError(f"telemetry.traces is otlp, but no collector is named: set {ENDPOINT}.")


def _processors(
    telemetry: TelemetryConfig, store_path: Path, environment: Mapping[str, str]
) -> tuple[BoundedSpanProcessor, ...]:
    if telemetry.traces == "off" or environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    captures = captures_content(environment)
    processors = []
    if telemetry.traces == "store":
        exporter = SqliteSpanExporter(TraceStore(store_path, telemetry.store_max_spans))
        processors.append(_processor("store", exporter, _STORE_DELAY_S, captures))
    target = otlp_target(environment)
    if target is not None:
        processors.append(_processor("otlp", make_exporter(target), _OTLP_DELAY_S, captures))
    return tuple(processors)


def _processor(name: str, exporter: SpanExporter, delay_s: float, keep_messages: bool) -> BoundedSpanProcessor:
    return BoundedSpanProcessor(
        name,
        exporter,
        max_queue=_QUEUE,
        max_batch=_BATCH,
        delay_s=delay_s,
        shutdown_timeout_s=_SHUTDOWN_S,
        keep_messages=keep_messages,
    )


def _sampler(telemetry: TelemetryConfig, environment: Mapping[str, str]) -> Sampler | None:
    if telemetry.traces == "off":
        # Ids are still made, so that log lines and responses can be matched.
        return ALWAYS_OFF
    if environment.get(_SAMPLER_VARIABLE, "").strip():
        # None lets the SDK read the standard variables.
        return None
    return ParentBased(TraceIdRatioBased(telemetry.sample_ratio))


def _resource(process: str, telemetry: TelemetryConfig) -> Resource:
    # Not Resource.create: it searches the metadata of every installed package for detectors.
    own = Resource(
        {
            names.SERVICE_NAME: telemetry.service_name,
            names.SERVICE_INSTANCE_ID: str(uuid.uuid4()),
            names.PROCESS_ROLE: process,
            names.PROCESS_PID: os.getpid(),
            names.HOST_NAME: socket.gethostname(),
        }
    )
    return own.merge(OTELResourceDetector().detect())


def _limits(attribute_chars: int) -> SpanLimits:
    return SpanLimits(
        max_span_attributes=_MAX_ATTRIBUTES,
        max_events=_MAX_EVENTS,
        max_links=_MAX_LINKS,
        max_event_attributes=32,
        max_link_attributes=8,
        max_span_attribute_length=attribute_chars,
        max_attribute_length=_MAX_ATTRIBUTE_CHARS,
    )
