import numpy as np
import pytest

from cluster.config.experts import ExpertsConfig
from cluster.experts.heat import MAX_TRAFFIC, HeatMeter
from cluster.experts.load import Counts, ExpertShape

SHAPE = ExpertShape(layers=2, experts=4, top_k=2)
CONFIG = ExpertsConfig(half_life_s=10, hot=1.5, cool=1.2, dwell_s=5, min_tokens=50)
EVEN = [100, 100, 100, 100]
ON_ONE = [250, 50, 50, 50]


def counts(first: list[int], second: list[int] | None = None) -> Counts:
    return np.array([first, second if second is not None else EVEN], np.int64)


def meter(config: ExpertsConfig = CONFIG, at_s: float = 0.0, *replicas: str) -> HeatMeter:
    made = HeatMeter(SHAPE, config)
    for replica in replicas or ("a",):
        made.add(replica, SHAPE.zeros(), at_s)
    return made


def test_what_a_replica_tells_first_is_the_base_of_the_rest() -> None:
    one = HeatMeter(SHAPE, CONFIG)
    one.add("a", counts([1000, 0, 0, 0]), 0)
    assert one.heat(0).decayed.sum() == 0
    one.add("a", counts([1000, 10, 0, 30], [101, 100, 100, 100]), 1)
    np.testing.assert_array_equal(one.heat(1).decayed, [[0, 10, 0, 30], [1, 0, 0, 0]])


def test_shares_imbalance_entropy_and_tokens_of_each_layer() -> None:
    one = meter()
    one.add("a", counts([400, 0, 0, 0]), 1)
    heat = one.heat(1)
    np.testing.assert_allclose(heat.shares, [[1, 0, 0, 0], [0.25] * 4])
    np.testing.assert_allclose(heat.imbalance, [4, 1])
    np.testing.assert_allclose(heat.entropy, [0, 1])
    np.testing.assert_allclose(heat.tokens, [200, 200])


def test_a_meter_without_tokens_has_no_shares_and_nothing_hot() -> None:
    heat = HeatMeter(SHAPE, CONFIG).heat(3)
    assert not heat.shares.any() and not heat.imbalance.any() and not heat.entropy.any() and heat.hot == ()


def test_tokens_count_half_after_a_half_life_however_the_time_is_cut() -> None:
    whole, cut = meter(), meter()
    for one in (whole, cut):
        one.add("a", counts(ON_ONE), 1)
    for at_s in (1.1, 2.7, 2.7, 9, 10.99):
        cut.observe(at_s)
    np.testing.assert_allclose(whole.heat(11).decayed, np.array([ON_ONE, EVEN]) / 2)
    np.testing.assert_allclose(cut.heat(11).decayed, np.array([ON_ONE, EVEN]) / 2)


def test_a_time_that_goes_back_counts_as_the_latest() -> None:
    one = meter()
    one.add("a", counts(ON_ONE), 5)
    one.add("a", counts(ON_ONE), 2)
    heat = one.heat(1)
    assert heat.at_s == 5
    np.testing.assert_allclose(heat.decayed, [ON_ONE, EVEN])


def test_a_restarted_engine_adds_all_that_it_counted() -> None:
    one = meter()
    one.add("a", counts([100, 100, 0, 0]), 1)
    one.add("a", counts([5, 200, 0, 0], [0, 0, 0, 7]), 1)
    np.testing.assert_allclose(one.heat(1).decayed, [[105, 300, 0, 0], [100, 100, 100, 107]])


def test_the_rate_is_that_of_a_steady_stream_long_before_the_decay_is_settled() -> None:
    one = meter()
    for second in range(1, 4):
        one.add("a", counts([10 * second, 0, 0, 0], [0] * 4), second)
    assert one.heat(3).per_s[0, 0] == pytest.approx(10, rel=0.05)
    for second in range(4, 200):
        one.add("a", counts([10 * second, 0, 0, 0], [0] * 4), second)
    assert one.heat(199).per_s[0, 0] == pytest.approx(10, rel=0.05)


def test_an_expert_is_hot_only_once_it_was_above_for_the_dwell() -> None:
    one = meter()
    one.add("a", counts(ON_ONE), 1)
    assert one.heat(1).hot == ()
    one.observe(5.9)
    assert one.heat(5.9).hot == ()
    (hot,) = one.heat(6).hot
    assert (hot.layer, hot.expert, hot.since_s) == (0, 0, 6)
    assert hot.share == pytest.approx(0.625) and hot.times == pytest.approx(2.5)
    assert one.heat(7).hot[0].since_s == 6


def test_a_dip_below_the_threshold_starts_the_dwell_anew() -> None:
    one = meter()
    one.add("a", counts(ON_ONE), 1)
    one.add("a", counts([250, 250, 250, 250]), 4)
    one.observe(4)
    one.add("a", counts([2250, 250, 250, 250]), 5)
    assert one.heat(9.9).hot == ()
    assert [(hot.layer, hot.expert) for hot in one.heat(10).hot] == [(0, 0)]


def test_between_the_thresholds_it_stays_as_it_is_and_below_it_cools() -> None:
    one = meter(CONFIG.model_copy(update={"half_life_s": 1e4}))
    one.add("a", counts([2000, 1000, 1000, 1000]), 1)
    one.observe(2)
    assert one.heat(6).hot
    one.add("a", counts([2000, 1400, 1400, 1400]), 7)
    assert one.heat(7).shares[0, 0] * 4 == pytest.approx(1.29, abs=0.01)
    assert one.heat(60).hot
    one.add("a", counts([2000, 2000, 2000, 2000]), 61)
    assert one.heat(65.9).hot
    assert one.heat(66).hot == ()


def test_a_layer_with_few_tokens_has_no_hot_expert_and_cools_when_traffic_ends() -> None:
    few = meter()
    few.add("a", counts([90, 0, 0, 0], [0] * 4), 1)
    few.observe(2)
    assert few.heat(30).hot == ()
    ended = meter()
    ended.add("a", counts([400, 0, 0, 0], [0] * 4), 1)
    assert ended.heat(6).hot
    ended.observe(22)
    assert ended.heat(22).hot
    assert ended.heat(27).hot == ()
    assert ended.heat(27).shares[0, 0] == 1


def test_the_hottest_comes_first() -> None:
    one = meter()
    one.add("a", counts([250, 50, 50, 50], [10, 400, 10, 10]), 1)
    assert [(hot.layer, hot.expert) for hot in one.heat(6).hot] == [(1, 1), (0, 0)]


def test_which_traffic_heats_an_expert() -> None:
    one = meter()
    one.add("a", counts([400, 0, 0, 0]), 1)
    one.add_traffic("chat", "a", counts([100, 0, 0, 0], [0, 100, 0, 0]), 1)
    one.add_traffic("code", "a", counts([300, 0, 0, 0], [0, 0, 0, 0]), 1)
    heat = one.heat(6)
    assert heat.hot[0].traffic == (("code", 0.75), ("chat", 0.25))
    np.testing.assert_allclose(heat.by_traffic["chat"], [[1, 0, 0, 0], [0, 1, 0, 0]])
    np.testing.assert_allclose(heat.by_traffic["code"], [[1, 0, 0, 0], [0, 0, 0, 0]])


def test_traffic_of_a_replica_seen_for_the_first_time_is_a_base_and_of_one_that_restarted_new() -> None:
    one = HeatMeter(SHAPE, CONFIG)
    one.add("a", counts(EVEN), 0)
    one.add_traffic("chat", "a", counts([100, 0, 0, 0], [0] * 4), 0)
    assert one.heat(0).by_traffic == {}
    one.add_traffic("chat", "a", counts([100, 50, 0, 0], [0] * 4), 0.1)
    assert one.heat(0.1).by_traffic["chat"][0, 1] == 1
    one.add("a", counts([90, 0, 0, 0], [0] * 4), 0.1)
    one.add_traffic("chat", "a", counts([150, 50, 0, 0], [0] * 4), 0.1)
    np.testing.assert_allclose(one.heat(0.1).by_traffic["chat"][0], [0.6, 0.4, 0, 0])


def test_kinds_of_traffic_are_bounded() -> None:
    one = meter()
    for kind in range(MAX_TRAFFIC + 5):
        one.add_traffic(f"kind {kind:02}", "a", counts(ON_ONE), 1)
    assert list(one.heat(1).by_traffic) == [f"kind {kind:02}" for kind in range(MAX_TRAFFIC)]


def test_a_forgotten_replica_cools_down_and_comes_back_as_a_new_one() -> None:
    one = meter(CONFIG, 0.0, "a", "b")
    one.add("a", counts(ON_ONE), 1)
    one.forget("a")
    one.forget("never there")
    assert one.replicas() == ("b",)
    assert one.heat(1).decayed[0, 0] == 250
    one.add("a", counts([9999, 0, 0, 0]), 1)
    assert one.heat(1).decayed[0, 0] == 250


def test_counts_that_the_caller_changes_later_do_no_harm() -> None:
    one, told = meter(), counts(ON_ONE)
    one.add("a", told, 1)
    told += 1000
    one.add("a", told, 1)
    assert one.heat(1).decayed[0, 0] == 1250


def test_another_config_counts_from_then_on() -> None:
    one = meter()
    one.add("a", counts(ON_ONE), 1)
    assert one.heat(6).hot
    one.follow(CONFIG.model_copy(update={"hot": 4.0, "cool": 3.0}))
    one.observe(7)
    assert one.heat(12).hot == ()


def test_counts_of_another_shape_are_refused() -> None:
    one = meter()
    with pytest.raises(ValueError, match="shape"):
        one.add("a", np.zeros((2, 5), np.int64), 1)
    with pytest.raises(ValueError, match="shape"):
        one.add_traffic("chat", "a", np.zeros((1, 4), np.int64), 1)
