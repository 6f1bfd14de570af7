import numpy as np
import pytest

from cluster.experts.tail import TailMonitor, width_class


def test_an_empty_monitor_has_all_classes_and_no_figures() -> None:
    table = TailMonitor().table()
    assert [row.name for row in table.rows] == ["le_0.25", "le_0.5", "le_0.75", "le_0.9", "le_1"]
    assert all(row.requests == 0 and row.share == 0 and row.seconds is None and not row.rare for row in table.rows)
    assert (table.requests, table.since_s, table.rare) == (0, None, ())


@pytest.mark.parametrize(
    ("width", "name"),
    [(0.0, "le_0.25"), (0.25, "le_0.25"), (0.26, "le_0.5"), (0.9, "le_0.9"), (0.901, "le_1"), (1.0, "le_1")],
)
def test_a_width_on_the_limit_belongs_below_it(width: float, name: str) -> None:
    monitor = TailMonitor()
    monitor.add(width, 3, 1.0, 1, 0.0)
    assert width_class(width) == name
    assert [row.name for row in monitor.table().rows if row.requests] == [name]


def test_quantiles_are_exact_and_per_class() -> None:
    monitor = TailMonitor()
    seconds = np.random.default_rng(1).exponential(1, 300)
    for index, one in enumerate(seconds):
        monitor.add(0.2, 5, one, 10, index)
    monitor.add(0.6, 40, 7.0, 2, 300)
    narrow, wide = (row for row in monitor.table().rows if row.requests)
    assert narrow.seconds is not None and narrow.seconds_per_token is not None
    np.testing.assert_allclose(
        [narrow.seconds.p50, narrow.seconds.p95, narrow.seconds.p99], np.quantile(seconds, [0.5, 0.95, 0.99])
    )
    assert narrow.seconds_per_token.p99 == pytest.approx(narrow.seconds.p99 / 10)
    assert wide.seconds is not None and wide.seconds_per_token is not None
    assert (wide.seconds.p50, wide.seconds_per_token.p50, wide.distinct) == (7.0, 3.5, 40)


def test_the_rare_wide_route_is_named() -> None:
    monitor = TailMonitor()
    for _ in range(95):
        monitor.add(0.3, 9, 1.0, 8, 0)
    for _ in range(5):
        monitor.add(0.6, 20, 1.0, 8, 0)
    assert monitor.table().rare == ()
    monitor.add(0.95, 30, 9.0, 8, 0)
    table = monitor.table()
    assert [row.name for row in table.rare] == ["le_0.75", "le_1"]
    assert sum(row.share for row in table.rows) == pytest.approx(1)


def test_the_window_is_bounded_and_says_when_it_begins() -> None:
    monitor = TailMonitor(maxlen=10)
    for index in range(25):
        monitor.add(0.1 if index < 20 else 1.0, 1, float(index), 1, 100.0 + index)
    table = monitor.table()
    assert (table.requests, table.since_s) == (10, 115.0)
    assert [row.requests for row in table.rows] == [5, 0, 0, 0, 5]


def test_requests_without_completion_tokens_have_no_time_per_token() -> None:
    monitor = TailMonitor()
    monitor.add(0.1, 1, 2.0, 0, 0)
    row = monitor.table().rows[0]
    assert row.seconds is not None and row.seconds_per_token is None
    monitor.add(0.1, 1, 4.0, 2, 0)
    per_token = monitor.table().rows[0].seconds_per_token
    assert per_token is not None and per_token.p99 == 2.0
