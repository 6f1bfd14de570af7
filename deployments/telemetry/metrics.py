"""The ingress's Prometheus metrics, on a registry of their own.

Label values come from bounded sets: model names from the config, endpoints and statuses from enumerations, anything
else up to a limit, beyond which it is `other`. Nothing is kept per request once it has ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from cluster.experts.load import ExpertUse
from cluster.experts.tail import width_class
from cluster.records.precision_change import PrecisionChange
from cluster.telemetry import metric_table
from cluster.telemetry.metric_table import Metric
from deployments.engines.protocol import Endpoint, EngineReply, EngineStats, TokenUsage
from deployments.telemetry.exposition import Exposition
from deployments.telemetry.series import Buckets, Counts, Histogram, Sighting, number_family
from deployments.telemetry.setup import SpanCounts

OTHER: Final = "other"

_MAX_WORDS: Final = 128


@dataclass(frozen=True, slots=True)
class ReplicaStats:
    """What one replica last said about its engine."""

    model: str
    replica: str
    stats: EngineStats
    level: int = 0
    """Level of the precision ladder that it is at."""


class StreamTimer:
    """Times one request. `chunk` is all that a token costs: one search in a dozen numbers."""

    __slots__ = ("_last_s", "first_s", "gaps", "longest_gap_s", "started_s")

    def __init__(self, started_s: float) -> None:
        """`started_s` is the request's arrival on a monotonic clock, seconds; so are all times given later."""
        self.started_s = started_s
        self._last_s: float | None = None
        self.first_s: float | None = None
        """Seconds from arrival to the first chunk; None as long as there is none."""
        self.gaps = Buckets(metric_table.ITL_SECONDS.buckets)
        self.longest_gap_s: float | None = None
        """The longest share that a token had; None as long as there was none."""

    def chunk(self, now_s: float, tokens: int = 1) -> None:
        """A chunk of `tokens` tokens of a stream is on its way; each token gets an equal share of the gap."""
        last = self._last_s
        self._last_s = now_s
        if last is None:
            self.first_s = now_s - self.started_s
        elif tokens > 0:
            gap_s = (now_s - last) / tokens
            self.gaps.observe(gap_s, tokens)
            if self.longest_gap_s is None or gap_s > self.longest_gap_s:
                self.longest_gap_s = gap_s


class IngressMetrics:
    """All metrics of one ingress process."""

    def __init__(
        self,
        process: str,
        models: Iterable[str],
        *,
        spans: Callable[[], SpanCounts] = SpanCounts,
        log_lines_dropped: Callable[[], int] = int,
    ) -> None:
        """`models` are the names that may appear as a label; the two callables are read at each scrape."""
        self._process = process
        self._models = frozenset(models)
        self._words = _Bounded(_MAX_WORDS)
        self._counts = {metric.name: Counts.empty(metric) for metric in _COUNTED}
        self._histograms = {metric.name: Histogram.empty(metric) for metric in _HISTOGRAMS}
        self._replicas: tuple[ReplicaStats, ...] = ()
        self._states: dict[tuple[str, ...], float] = {}
        self._loop_lag_s = 0.0
        self._spans = spans
        self._log_lines_dropped = log_lines_dropped
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Computed(self._families))

    def also(self, families: Callable[[], Iterator[Family]]) -> None:
        """Show families that another part of the process makes at each scrape."""
        self._registry.register(_Computed(families))

    def set_models(self, models: Iterable[str]) -> None:
        """The config changed: these names may appear as labels from now on."""
        self._models = frozenset(models)

    @contextmanager
    def in_flight(self, endpoint: Endpoint) -> Iterator[None]:
        """Count a request as being served while this is open."""
        self._add(metric_table.IN_FLIGHT, (endpoint.value,))
        try:
            yield
        finally:
            self._add(metric_table.IN_FLIGHT, (endpoint.value,), -1)

    def decided(self, model: str, rule: str) -> None:
        """The router chose `model`. `rule` is the name of a rule, not a sentence."""
        self._add(metric_table.DECISIONS, (self._model(model), self._words.bound(rule)))

    def answered(
        self,
        model: str,
        endpoint: Endpoint,
        reply: EngineReply,
        timer: StreamTimer,
        now_s: float,
        trace_id: str | None = None,
    ) -> None:
        """A model's answer has left; `now_s` is the end on the clock of `timer`, whose chunks were those of a stream.

        `trace_id` names its trace, if that is kept: it becomes the example of how long requests take.
        """
        label = self._model(model)
        self._add(metric_table.REQUESTS, (endpoint.value, label, self._words.bound(str(reply.status))))
        seen = None if trace_id is None else Sighting(trace_id, time.time())
        self._observe(metric_table.REQUEST_SECONDS, (endpoint.value, label), now_s - timer.started_s, seen)
        if timer.first_s is not None:
            self._observe(metric_table.TTFT_SECONDS, (label,), timer.first_s, seen)
            gaps = self._histograms[metric_table.ITL_SECONDS.name].buckets((label,))
            gaps.merge(timer.gaps)
            if seen is not None and timer.longest_gap_s is not None:
                gaps.exemplify(timer.longest_gap_s, seen)
        usage = reply.usage
        self._add(metric_table.PROMPT_TOKENS, (label,), usage.prompt_tokens)
        self._add(metric_table.COMPLETION_TOKENS, (label,), usage.completion_tokens)
        self._add(metric_table.CACHED_TOKENS, (label,), usage.cached_tokens)
        self._add(metric_table.TRUNCATED_TOKENS_TOTAL, (label,), usage.truncated_tokens)
        if reply.status < 400:
            self._observe(metric_table.PROMPT_SIZE, (label,), usage.prompt_tokens)
            self._observe(metric_table.COMPLETION_SIZE, (label,), usage.completion_tokens)

    def refused(self, endpoint: Endpoint, status: int, code: str) -> None:
        """A request was refused before a model saw it, or because none could. `code` is an error code, no sentence."""
        self._add(metric_table.REFUSED, (endpoint.value, self._words.bound(str(status)), self._words.bound(code)))

    def admission(self, model: str, outcome: str, code: str) -> None:
        """A request came to a model. `outcome` and `code` are words."""
        self._add(metric_table.ADMISSIONS, (self._model(model), outcome, self._words.bound(code)))

    def stepped(self, change: PrecisionChange) -> None:
        """A replica went to another level of its precision ladder, or failed to."""
        outcome = "done" if change.error is None else "failed"
        self._add(metric_table.LEVEL_CHANGES, (self._model(change.model), change.level_name, change.cause, outcome))

    def sampling_changed(self, model: str, level: str) -> None:
        """The precision ladder changed how a request is sampled. `level` is the name of a level."""
        self._add(metric_table.SAMPLING_CHANGED, (self._model(model), level))

    @contextmanager
    def waiting(self, model: str) -> Iterator[None]:
        """Count a request as waiting for its model while this is open."""
        self._add(metric_table.ADMISSION_WAITING, (self._model(model),))
        try:
            yield
        finally:
            self._add(metric_table.ADMISSION_WAITING, (self._model(model),), -1)

    def retried(self, model: str) -> None:
        """An attempt was repeated on another replica."""
        self._add(metric_table.RETRIES, (self._model(model),))

    def judged(self, model: str, outcome: str) -> None:
        """An attempt was judged. `outcome` is a word."""
        self._add(metric_table.ATTEMPTS_JUDGED, (self._model(model), self._words.bound(outcome)))

    def confident(self, model: str, confidence: float) -> None:
        """A model was so sure of an answer, 0 to 1."""
        self._observe(metric_table.ATTEMPT_CONFIDENCE, (self._model(model),), confidence)

    def repeated(self, *, steady: bool) -> None:
        """A request was asked again in nearly the same words; `steady`: and went to the same model."""
        self._add(metric_table.ROUTE_REPEATS, ("same" if steady else "changed",))

    def spent(self, model: str, usage: TokenUsage) -> None:
        """Tokens that a model computed for an answer that was not sent, or to check one."""
        self._add(metric_table.PROMPT_TOKENS, (self._model(model),), usage.prompt_tokens)
        self._add(metric_table.COMPLETION_TOKENS, (self._model(model),), usage.completion_tokens)
        self._add(metric_table.CACHED_TOKENS, (self._model(model),), usage.cached_tokens)

    def late(self, model: str, role: str) -> None:
        """A stream's first token came later than the contract of its role aims at."""
        self._add(metric_table.LATENCY_TARGET_MISSES, (self._model(model), self._words.bound(role)))

    def disconnected(self, endpoint: Endpoint) -> None:
        """The client went away before its answer was complete."""
        self._add(metric_table.DISCONNECTS, (endpoint.value,))

    def engine_died(self, model: str, cause: str) -> None:
        """An engine died or hung. `cause` is a word, not a sentence."""
        self._add(metric_table.ENGINE_DEATHS, (self._model(model), self._words.bound(cause)))

    def experts_used(self, model: str, use: ExpertUse, seconds: float) -> None:
        """A request ended that held an engine for `seconds`, and used these experts."""
        label = self._model(model)
        self._observe(metric_table.REQUEST_EXPERTS, (label,), use.width)
        self._observe(metric_table.EXPERTS_REQUEST_SECONDS, (label, width_class(use.width)), seconds)

    def set_loop_lag(self, seconds: float) -> None:
        """How late this process's event loop last was."""
        self._loop_lag_s = seconds

    def set_replicas(self, replicas: Iterable[ReplicaStats], states: Mapping[tuple[str, str], int]) -> None:
        """What the live replicas last said, and how many replicas there are by (model, state).

        Replaces what was set before: a replica that is not named any more leaves the metrics.
        """
        self._replicas = tuple(replicas)
        self._states = {key: float(count) for key, count in states.items()}

    def render(self, exposition: Exposition = Exposition.PLAIN) -> bytes:
        """Everything in one of Prometheus's text formats; examples of requests are in OpenMetrics alone."""
        return exposition.render(self._registry)

    def _model(self, model: str) -> str:
        return model if model in self._models else OTHER

    def _add(self, metric: Metric, labels: tuple[str, ...], amount: float = 1.0) -> None:
        self._counts[metric.name].add(labels, amount)

    def _observe(self, metric: Metric, labels: tuple[str, ...], value: float, seen: Sighting | None = None) -> None:
        buckets = self._histograms[metric.name].buckets(labels)
        buckets.observe(value)
        if seen is not None:
            buckets.exemplify(value, seen)

    def _families(self) -> Iterator[Family]:
        yield from (counts.family() for counts in self._counts.values())
        yield from (histogram.family() for histogram in self._histograms.values())
        for metric, read in _REPLICA_METRICS:
            yield number_family(metric, (((each.model, each.replica), read(each.stats)) for each in self._replicas))
        levels = (((each.model, each.replica), each.level) for each in self._replicas)
        yield number_family(metric_table.PRECISION_LEVEL, levels)
        formats = (
            ((each.model, each.replica, each.stats.kv_precision), 1)
            for each in self._replicas
            if each.stats.kv_precision
        )
        yield number_family(metric_table.KV_PRECISION_INFO, formats)
        yield number_family(metric_table.REPLICAS, self._states.items())
        own = (self._process,)
        spans = self._spans()
        yield number_family(metric_table.LOOP_LAG_SECONDS, [(own, self._loop_lag_s)])
        yield number_family(metric_table.SPANS_STORED, [(own, spans.exported)])
        yield number_family(metric_table.SPANS_DROPPED, [(own, spans.dropped)])
        yield number_family(metric_table.LOG_LINES_DROPPED, [(own, self._log_lines_dropped())])


class _Bounded:
    """Lets the first `limit` different values through; later ones become `other`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: set[str] = set()

    def bound(self, value: str) -> str:
        if value in self._seen:
            return value
        if len(self._seen) >= self._limit or len(value) > 64:
            return OTHER
        self._seen.add(value)
        return value


class _Computed(Collector):
    """Families that are made at each scrape."""

    def __init__(self, families: Callable[[], Iterator[Family]]) -> None:
        self._families = families

    def collect(self) -> Iterator[Family]:
        return self._families()


_COUNTED: Final = (
    metric_table.REQUESTS,
    metric_table.IN_FLIGHT,
    metric_table.DECISIONS,
    metric_table.REFUSED,
    metric_table.ADMISSIONS,
    metric_table.ADMISSION_WAITING,
    metric_table.LEVEL_CHANGES,
    metric_table.SAMPLING_CHANGED,
    metric_table.RETRIES,
    metric_table.ATTEMPTS_JUDGED,
    metric_table.ROUTE_REPEATS,
    metric_table.LATENCY_TARGET_MISSES,
    metric_table.DISCONNECTS,
    metric_table.ENGINE_DEATHS,
    metric_table.PROMPT_TOKENS,
    metric_table.COMPLETION_TOKENS,
    metric_table.CACHED_TOKENS,
    metric_table.TRUNCATED_TOKENS_TOTAL,
)
_HISTOGRAMS: Final = (
    metric_table.REQUEST_SECONDS,
    metric_table.TTFT_SECONDS,
    metric_table.ITL_SECONDS,
    metric_table.PROMPT_SIZE,
    metric_table.COMPLETION_SIZE,
    metric_table.ATTEMPT_CONFIDENCE,
    metric_table.REQUEST_EXPERTS,
    metric_table.EXPERTS_REQUEST_SECONDS,
)
_REPLICA_METRICS: Final[tuple[tuple[Metric, Callable[[EngineStats], float]], ...]] = (
    (metric_table.ENGINE_RUNNING, lambda stats: stats.running),
    (metric_table.ENGINE_WAITING, lambda stats: stats.waiting),
    (metric_table.KV_USAGE, lambda stats: stats.kv_usage),
    (metric_table.KV_BLOCKS, lambda stats: stats.kv_blocks),
    (metric_table.PREEMPTIONS, lambda stats: stats.preemptions),
    (metric_table.FORCED_PREEMPTIONS, lambda stats: stats.forced_preemptions),
    (metric_table.RECOMPUTED_TOKENS, lambda stats: stats.recomputed_tokens),
    (metric_table.KV_EVICTIONS, lambda stats: stats.kv_evictions),
    (metric_table.KV_LIFETIME, lambda stats: stats.kv_lifetime_s),
    (metric_table.KV_SWITCHES_TOTAL, lambda stats: stats.kv_switches),
    (metric_table.PREFIX_QUERIES, lambda stats: stats.prefix_queries),
    (metric_table.PREFIX_HITS, lambda stats: stats.prefix_hits),
    (metric_table.ENGINE_PROMPT_TOKENS, lambda stats: stats.prompt_tokens),
    (metric_table.ENGINE_GENERATED_TOKENS, lambda stats: stats.generated_tokens),
)
