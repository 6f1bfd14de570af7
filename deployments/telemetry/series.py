"""Counts and histograms as plain numbers, made into Prometheus's families when somebody asks.

A histogram's observations can be gathered apart and merged at once, so that a token costs next to nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, cast

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.samples import Exemplar

from cluster.telemetry.metric_table import Metric, MetricType

TRACE_ID: Final = "trace_id"
"""Label of an exemplar, by which Grafana finds the trace."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """A request whose trace is kept, as an example of what is observed of it."""

    trace_id: str
    unix_s: float
    """When it was observed, seconds of the wall clock."""

    def exemplar(self, value: float) -> Exemplar:
        """As Prometheus's client exposes it; `value` is what was observed."""
        return Exemplar({TRACE_ID: self.trace_id}, value, round(self.unix_s, 3))


class Buckets:
    """Counts of observations between fixed bounds, each with the latest example where one was given."""

    __slots__ = ("_bounds", "_exemplars", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds` are the ascending upper ends of the buckets; one more holds everything beyond."""
        self._bounds = tuple(bounds)
        self.counts = [0] * (len(self._bounds) + 1)
        self._exemplars: dict[int, Exemplar] = {}
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value` (of the unit of the bounds), `times` times."""
        self.counts[bisect_left(self._bounds, value)] += times
        self.total += value * times

    def exemplify(self, value: float, sighting: Sighting) -> None:
        """Show a request as the example of the bucket that `value` is counted in."""
        self._exemplars[bisect_left(self._bounds, value)] = sighting.exemplar(value)

    def merge(self, other: Buckets) -> None:
        """Add all of `other`, which must have the same bounds."""
        if other._bounds != self._bounds:
            raise ValueError("histograms with different bounds cannot be merged")
        for index, count in enumerate(other.counts):
            self.counts[index] += count
        self.total += other.total

    def cumulative(self) -> Iterator[tuple[str, float, Exemplar | None]]:
        """Bounds as Prometheus writes them, with the count of observations up to each and the latest example of each bucket."""
        running = 0
        for index, count in enumerate(self.counts):
            running += count
            bound = str(float(self._bounds[index])) if index < len(self._bounds) else "+Inf"
            yield bound, float(running), self._exemplars.get(index)


@dataclass(frozen=True, slots=True)
class Histogram:
    """One histogram metric: buckets per combination of label values."""

    metric: Metric
    series: dict[tuple[str, ...], Buckets]

    @classmethod
    def empty(cls, metric: Metric) -> Histogram:
        """A histogram without observations."""
        return cls(metric, {})

    def buckets(self, labels: tuple[str, ...]) -> Buckets:
        """The buckets of one combination of label values, in the order of the metric's labels."""
        found = self.series.get(labels)
        if found is None:
            found = self.series[labels] = Buckets(self.metric.buckets)
        return found

    def family(self) -> HistogramMetricFamily:
        """All of it, as Prometheus's client exposes it."""
        family = HistogramMetricFamily(self.metric.name, self.metric.help, labels=self.metric.labels)
        for labels, buckets in self.series.items():
            # Its types know of two forms of a bucket apart, never of both in one list.
            shown = cast("list[tuple[str, float]]", list(buckets.cumulative()))
            family.add_metric(labels, shown, sum_value=buckets.total)
        return family


@dataclass(frozen=True, slots=True)
class Counts:
    """One counter or gauge: a number per combination of label values."""

    metric: Metric
    series: dict[tuple[str, ...], float]

    @classmethod
    def empty(cls, metric: Metric) -> Counts:
        """No numbers yet."""
        return cls(metric, {})

    def add(self, labels: tuple[str, ...], amount: float = 1.0) -> None:
        """Add to one number; the label values are in the order of the metric's labels."""
        self.series[labels] = self.series.get(labels, 0.0) + amount

    def family(self) -> Family:
        """All of it, as Prometheus's client exposes it."""
        return number_family(self.metric, self.series.items())


def number_family(metric: Metric, samples: Iterable[tuple[tuple[str, ...], float]]) -> Family:
    """A counter or gauge from label values and numbers."""
    kind = CounterMetricFamily if metric.type is MetricType.COUNTER else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family
