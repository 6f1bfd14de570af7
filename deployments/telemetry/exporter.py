"""From the OpenTelemetry SDK into the embedded store, and the span processor that all exporters run behind."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from deployments.telemetry.log_format import log_event
from deployments.telemetry.log_safety import Safe
from deployments.telemetry.redaction import redact
from deployments.telemetry.spans import from_sdk
from deployments.telemetry.store import TraceStore
from deployments.telemetry.store_file import StoreUnavailableError
from deployments.telemetry.worker import BatchWorker

logger = logging.getLogger(__name__)


class SqliteSpanExporter(SpanExporter):
    """Writes finished spans into a `TraceStore`. Never raises; what cannot be stored is reported as a failure."""

    def __init__(self, store: TraceStore) -> None:
        self._store = store
        self._failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Store the batch; a failure is logged once until storing works again."""
        try:
            self._store.write([from_sdk(span) for span in spans])
        except StoreUnavailableError as error:
            if not self._failing:
                log_event(logger, logging.ERROR, "traces_dropped", cause=Safe(error))
            self._failing = True
            return SpanExportResult.FAILURE
        if self._failing:
            log_event(logger, logging.WARNING, "traces_stored_again")
        self._failing = False
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Close the store."""
        self._store.close()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is held back here: always True, at once."""
        return timeout_millis >= 0


class BoundedSpanProcessor(SpanProcessor):
    """Hands sampled spans to one exporter from a bounded queue.

    The SDK's own batch processor logs what it drops but does not tell the count, ignores the time limit of a flush
    and wakes up at every interval of an idle process.
    """

    def __init__(
        self,
        name: str,
        exporter: SpanExporter,
        *,
        max_queue: int,
        max_batch: int,
        delay_s: float,
        shutdown_timeout_s: float,
        keep_messages: bool = False,
    ) -> None:
        """`name` says where the spans go; `keep_messages` lets them carry what was said."""
        self.name = name
        self._exporter = exporter
        self._keep_messages = keep_messages
        self._shut = False
        self._shutdown_timeout_s = shutdown_timeout_s
        self._worker: BatchWorker[ReadableSpan] = BatchWorker(
            f"pointsman-spans-{name}", self._export, max_queue=max_queue, max_batch=max_batch, delay_s=delay_s
        )

    @property
    def exported(self) -> int:
        """Spans that the exporter took, since start."""
        return self._worker.consumed

    @property
    def dropped_full(self) -> int:
        """Spans dropped because the queue was full or closed, since start."""
        return self._worker.dropped_full

    @property
    def dropped_failed(self) -> int:
        """Spans that the exporter could not take, since start."""
        return self._worker.dropped_failed

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing happens before a span ends."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a sampled span; never blocks."""
        context = span.get_span_context()
        if context is not None and context.trace_flags.sampled:
            self._worker.offer(span)

    def shutdown(self) -> None:
        """Export what is queued, for a bounded time, then shut the exporter down. Idempotent."""
        self.close(self._shutdown_timeout_s)

    def close(self, timeout_s: float) -> bool:
        """As `shutdown`, within `timeout_s` seconds; False if time ran out."""
        done = self._worker.close(timeout_s)
        if not self._shut:
            self._shut = True
            self._exporter.shutdown()
        return done

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Wait until all spans ended so far are exported; False if that took longer than `timeout_millis`."""
        return self._worker.flush(timeout_millis / 1000)

    def _export(self, batch: Sequence[ReadableSpan]) -> int:
        result = self._exporter.export([redact(span, keep_messages=self._keep_messages) for span in batch])
        return 0 if result is SpanExportResult.SUCCESS else len(batch)
