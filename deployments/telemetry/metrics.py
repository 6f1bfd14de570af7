"""The ingress's Prometheus metrics, on a registry of their own.

Label values come from bounded sets: model names from the config, endpoints and statuses from enumerations, anything
else up to a limit, beyond which it is `other`. Nothing is kept per request once it has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from cluster.telemetry import names
from cluster.telemetry.names import Metric
from deployments.engines.protocol import Endpoint, EngineReply, EngineStats, TokenUsage
from deployments.telemetry.series import Buckets, Counts, Histogram, number_family
from deployments.telemetry.setup import SpanCounts

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
OTHER: Final = "other"

_MAX_WORDS: Final = 128


@dataclass(frozen=True, slots=True)
class ReplicaStats:
    """What one replica last said about its engine."""

    model: str
    replica: str
    stats: EngineStats


class StreamTimer:
    """Times one request. `chunk` is all that a token costs: one search in a dozen numbers."""

    __slots__ = ("_last_s", "first_s", "gaps", "started_s")

    def __init__(self, started_s: float) -> None:
        """`started_s` is the request's arrival on a monotonic clock, seconds; so are all times given later."""
        self.started_s = started_s
        self._last_s: float | None = None
        self.first_s: float | None = None
        """Seconds from arrival to the first chunk; None as long as there is none."""
        self.gaps = Buckets(names.ITL_SECONDS.buckets)

    def chunk(self, now_s: float, tokens: int = 1) -> None:
        """A chunk of `tokens` tokens of a stream is on its way; each token gets an equal share of the gap."""
        last = self._last_s
        self._last_s = now_s
        if last is None:
            self.first_s = now_s - self.started_s
        elif tokens > 0:
            self.gaps.observe((now_s - last) / tokens, tokens)


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
        self._add(names.IN_FLIGHT, (endpoint.value,))
        try:
            yield
        finally:
            self._add(names.IN_FLIGHT, (endpoint.value,), -1)

    def decided(self, model: str, rule: str) -> None:
        """The router chose `model`. `rule` is the name of a rule, not a sentence."""
        self._add(names.DECISIONS, (self._model(model), self._words.bound(rule)))

    def answered(self, model: str, endpoint: Endpoint, reply: EngineReply, timer: StreamTimer, now_s: float) -> None:
        """A model's answer has left; `now_s` is the end on the clock of `timer`, whose chunks were those of a stream."""
        label = self._model(model)
        self._add(names.REQUESTS, (endpoint.value, label, self._words.bound(str(reply.status))))
        self._observe(names.REQUEST_SECONDS, (endpoint.value, label), now_s - timer.started_s)
        if timer.first_s is not None:
            self._observe(names.TTFT_SECONDS, (label,), timer.first_s)
            self._histograms[names.ITL_SECONDS.name].buckets((label,)).merge(timer.gaps)
        usage = reply.usage
        self._add(names.PROMPT_TOKENS, (label,), usage.prompt_tokens)
        self._add(names.COMPLETION_TOKENS, (label,), usage.completion_tokens)
        self._add(names.CACHED_TOKENS, (label,), usage.cached_tokens)
        self._add(names.TRUNCATED_TOKENS_TOTAL, (label,), usage.truncated_tokens)
        if reply.status < 400:
            self._observe(names.PROMPT_SIZE, (label,), usage.prompt_tokens)
            self._observe(names.COMPLETION_SIZE, (label,), usage.completion_tokens)

    def refused(self, endpoint: Endpoint, code: str) -> None:
        """A request was refused before a model saw it, or because none could. `code` is an error code, no sentence."""
        self._add(names.REFUSED, (endpoint.value, self._words.bound(code)))

    def admission(self, model: str, outcome: str, code: str) -> None:
        """A request came to a model. `outcome` and `code` are words."""
        self._add(names.ADMISSIONS, (self._model(model), outcome, self._words.bound(code)))

    @contextmanager
    def waiting(self, model: str) -> Iterator[None]:
        """Count a request as waiting for its model while this is open."""
        self._add(names.ADMISSION_WAITING, (self._model(model),))
        try:
            yield
        finally:
            self._add(names.ADMISSION_WAITING, (self._model(model),), -1)

    def retried(self, model: str) -> None:
        """An attempt was repeated on another replica."""
        self._add(names.RETRIES, (self._model(model),))

    def judged(self, model: str, outcome: str) -> None:
        """An attempt was judged. `outcome` is a word."""
        self._add(names.ATTEMPTS_JUDGED, (self._model(model), self._words.bound(outcome)))

    def spent(self, model: str, usage: TokenUsage) -> None:
        """Tokens that a model computed for an answer that was not sent, or to check one."""
        self._add(names.PROMPT_TOKENS, (self._model(model),), usage.prompt_tokens)
        self._add(names.COMPLETION_TOKENS, (self._model(model),), usage.completion_tokens)
        self._add(names.CACHED_TOKENS, (self._model(model),), usage.cached_tokens)

    def late(self, model: str, role: str) -> None:
        """A stream's first token came later than the contract of its role aims at."""
        self._add(names.LATENCY_TARGET_MISSES, (self._model(model), self._words.bound(role)))

    def disconnected(self, endpoint: Endpoint) -> None:
        """The client went away before its answer was complete."""
        self._add(names.DISCONNECTS, (endpoint.value,))

    def engine_died(self, model: str, cause: str) -> None:
        """An engine died or hung. `cause` is a word, not a sentence."""
        self._add(names.ENGINE_DEATHS, (self._model(model), self._words.bound(cause)))

    def set_loop_lag(self, seconds: float) -> None:
        """How late this process's event loop last was."""
        self._loop_lag_s = seconds

    def set_replicas(self, replicas: Iterable[ReplicaStats], states: Mapping[tuple[str, str], int]) -> None:
        """What the live replicas last said, and how many replicas there are by (model, state).

        Replaces what was set before: a replica that is not named any more leaves the metrics.
        """
        self._replicas = tuple(replicas)
        self._states = {key: float(count) for key, count in states.items()}

    def render(self) -> bytes:
        """Everything in Prometheus's text format; its content type is `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def _model(self, model: str) -> str:
        return model if model in self._models else OTHER

    def _add(self, metric: Metric, labels: tuple[str, ...], amount: float = 1.0) -> None:
        self._counts[metric.name].add(labels, amount)

    def _observe(self, metric: Metric, labels: tuple[str, ...], value: float) -> None:
        self._histograms[metric.name].buckets(labels).observe(value)

    def _families(self) -> Iterator[Family]:
        yield from (counts.family() for counts in self._counts.values())
        yield from (histogram.family() for histogram in self._histograms.values())
        for metric, read in _REPLICA_METRICS:
            yield number_family(metric, (((each.model, each.replica), read(each.stats)) for each in self._replicas))
        yield number_family(names.REPLICAS, self._states.items())
        own = (self._process,)
        spans = self._spans()
        yield number_family(names.LOOP_LAG_SECONDS, [(own, self._loop_lag_s)])
        yield number_family(names.SPANS_STORED, [(own, spans.exported)])
        yield number_family(names.SPANS_DROPPED, [(own, spans.dropped)])
        yield number_family(names.LOG_LINES_DROPPED, [(own, self._log_lines_dropped())])


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
    names.REQUESTS,
    names.IN_FLIGHT,
    names.DECISIONS,
    names.REFUSED,
    names.ADMISSIONS,
    names.ADMISSION_WAITING,
    names.RETRIES,
    names.ATTEMPTS_JUDGED,
    names.LATENCY_TARGET_MISSES,
    names.DISCONNECTS,
    names.ENGINE_DEATHS,
    names.PROMPT_TOKENS,
    names.COMPLETION_TOKENS,
    names.CACHED_TOKENS,
    names.TRUNCATED_TOKENS_TOTAL,
)
_HISTOGRAMS: Final = (
    names.REQUEST_SECONDS,
    names.TTFT_SECONDS,
    names.ITL_SECONDS,
    names.PROMPT_SIZE,
    names.COMPLETION_SIZE,
)
_REPLICA_METRICS: Final[tuple[tuple[Metric, Callable[[EngineStats], float]], ...]] = (
    (names.ENGINE_RUNNING, lambda stats: stats.running),
    (names.ENGINE_WAITING, lambda stats: stats.waiting),
    (names.KV_USAGE, lambda stats: stats.kv_usage),
    (names.KV_BLOCKS, lambda stats: stats.kv_blocks),
    (names.PREEMPTIONS, lambda stats: stats.preemptions),
    (names.PREFIX_QUERIES, lambda stats: stats.prefix_queries),
    (names.PREFIX_HITS, lambda stats: stats.prefix_hits),
    (names.ENGINE_PROMPT_TOKENS, lambda stats: stats.prompt_tokens),
    (names.ENGINE_GENERATED_TOKENS, lambda stats: stats.generated_tokens),
)
