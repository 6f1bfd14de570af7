"""What holds for the precision ladder under any load: it neither flutters nor gets stuck, and no two caches are lost at once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Final

from hypothesis import given
from hypothesis import strategies as st

from cluster.config.precision import KvQuality, ModelPrecisionConfig, PrecisionConfig
from cluster.precision.ladder import Ladder, Order, ReplicaState, decide
from cluster.precision.measures import Measure
from cluster.precision.pressure import PressureMeter, Sample

GOOD = KvQuality(agreement=0.99, kl=0.01, consistency=0.8)
BAD = KvQuality(agreement=0.5, kl=0.01, consistency=0.8)
KV_TOKENS: Final = 1000
NAMES: Final = "abc"


@dataclass(frozen=True)
class Load:
    """What comes to one replica, whatever it does about it."""

    own_usage: float
    """Tokens in use, as a share of the cache at the model's own precision."""
    preemptions_per_s: float = 0.0
    queue_growth_per_s: float = 0.0
    prefix_hits_per_s: float = 0.0
    prefill_tokens_per_s: float | None = None
    order_takes_s: float = 0.0
    fails: bool = False


@dataclass(frozen=True)
class Moment:
    passes_s: float
    loads: tuple[Load, ...]


CALM: Final = Load(0.01)
FULL: Final = Load(2.0, preemptions_per_s=9)
LOADS = st.builds(
    Load,
    own_usage=st.sampled_from([0.0, 0.3, 0.45, 0.5, 0.8, 0.95, 1.5]) | st.floats(0, 2),
    preemptions_per_s=st.sampled_from([0.0, 0.0, 0.05, 0.5, 3.0]),
    queue_growth_per_s=st.sampled_from([0.0, 0.0, 0.1, 1.0, 5.0]),
    prefix_hits_per_s=st.sampled_from([0.0, 10.0, 1000.0]),
    prefill_tokens_per_s=st.sampled_from([None, 1.0, 20.0, 60.0, 100.0, 10_000.0]),
    order_takes_s=st.sampled_from([0.0, 0.0, 1.0, 20.0]),
    fails=st.sampled_from([False, False, False, True]),
)
# Mostly whole seconds, in which the times of changes fall on the very limits.
MOMENTS = st.builds(
    Moment,
    passes_s=st.sampled_from([0.0, 1.0, 2.0, 5.0, 15.0, 30.0, 60.0]) | st.floats(0, 40),
    loads=st.tuples(LOADS, LOADS, LOADS),
)
DAYS = st.lists(MOMENTS, max_size=40)
CONFIGS = st.builds(
    PrecisionConfig,
    levels=st.just(tuple(Measure))
    | st.permutations(Measure).flatmap(lambda all_: st.integers(0, len(all_)).map(lambda count: tuple(all_[:count]))),
    dwell_s=st.sampled_from([5.0, 30.0]),
    stagger_s=st.sampled_from([0.0, 5.0, 40.0]),
)
MODELS = st.builds(
    ModelPrecisionConfig,
    twin=st.sampled_from([None, "twin"]),
    kv_quality=st.sampled_from([{}, {"fp8": GOOD}, {"fp8": BAD}]),
)
LADDERS = st.builds(Ladder, name=st.just("model"), config=CONFIGS, model=MODELS)


@dataclass
class Replica:
    """A replica that does as it is told, after some time."""

    name: str
    can_switch: bool
    level: int = 0
    level_since_s: float = -inf
    kv: str = "auto"
    kv_switched_s: float = -inf
    kv_failed_s: float = -inf
    kv_failures: int = 0
    calm_since_s: float | None = None
    order: Order | None = None
    done_s: float = inf
    load: Load = CALM

    def state(self) -> ReplicaState:
        holds = KV_TOKENS * (2 if self.kv == "fp8" else 1)
        return ReplicaState(
            name=self.name,
            level=self.level,
            level_since_s=self.level_since_s,
            kv_precision=self.kv,
            kv_switched_s=self.kv_switched_s,
            switching=self.order is not None,
            kv_usage=min(1.0, self.load.own_usage * KV_TOKENS / holds),
            kv_tokens=holds,
            own_kv_tokens=KV_TOKENS,
            preemptions_per_s=self.load.preemptions_per_s,
            waiting=0.0,
            queue_growth_per_s=self.load.queue_growth_per_s,
            prefix_hits_per_s=self.load.prefix_hits_per_s,
            prefill_tokens_per_s=self.load.prefill_tokens_per_s,
            calm_since_s=self.calm_since_s,
            kv_precisions=("auto", "fp8") if self.can_switch else (),
            kv_failed_s=self.kv_failed_s,
            kv_failures=self.kv_failures,
        )

    @property
    def switches(self) -> bool:
        return self.order is not None and self.order.kv_precision != self.kv


@dataclass
class World:
    """The replicas of one model, and a check of every order and every change."""

    ladder: Ladder
    replicas: list[Replica]
    now_s: float = 0.0
    changes: dict[str, list[float]] = field(default_factory=dict)
    switched: list[tuple[float, str]] = field(default_factory=list)
    orders: int = 0
    under_way: set[str] = field(default_factory=set)
    """Replicas with an order that was not carried out when the last decision was made."""

    def usable(self, replica: Replica, measure: Measure) -> bool:
        if measure is Measure.TWIN:
            return self.ladder.model.twin is not None
        return measure is not Measure.FP8_KV or (replica.can_switch and self.ladder.model.kv_quality.get("fp8") is GOOD)

    def live(self, moment: Moment) -> None:
        self.now_s += moment.passes_s
        for replica, load in zip(self.replicas, moment.loads, strict=False):
            replica.load = load
            self.finish(replica)
            if not self.ladder.is_calm(replica.state()):
                replica.calm_since_s = None
            elif replica.calm_since_s is None:
                replica.calm_since_s = self.now_s
        self.under_way = {replica.name for replica in self.replicas if replica.order is not None}
        orders = decide(self.ladder, [replica.state() for replica in self.replicas], self.now_s)
        assert orders == decide(self.ladder, [one.state() for one in reversed(self.replicas)], self.now_s)
        assert len({order.replica for order in orders}) == len(orders)
        for order in orders:
            replica = next(one for one in self.replicas if one.name == order.replica)
            self.check(replica, order)
            replica.order, replica.done_s = order, self.now_s + replica.load.order_takes_s
            self.orders += 1
        assert sum(replica.switches for replica in self.replicas) <= 1
        for replica in self.replicas:
            self.finish(replica)

    def finish(self, replica: Replica) -> None:
        if replica.order is None or replica.done_s > self.now_s:
            return
        if replica.switches and replica.load.fails:
            replica.kv_failed_s, replica.kv_failures = self.now_s, replica.kv_failures + 1
        elif replica.switches:
            replica.kv, replica.kv_switched_s = replica.order.kv_precision, self.now_s
            replica.kv_failed_s, replica.kv_failures = -inf, 0
            self.switched.append((self.now_s, replica.name))
        if replica.order.level != replica.level:
            replica.level, replica.level_since_s = replica.order.level, self.now_s
        replica.order, replica.done_s = None, inf
        self.changes.setdefault(replica.name, []).append(self.now_s)

    def check(self, replica: Replica, order: Order) -> None:
        levels = self.ladder.config.levels
        assert replica.order is None
        assert order.reason
        assert 0 <= order.level <= len(levels)
        assert (order.level, order.kv_precision) != (replica.level, replica.kv)
        if order.kv_precision == "fp8" and not (replica.kv == "fp8" and order.cause in ("pinned", "disabled")):
            assert Measure.FP8_KV in levels[: order.level]
            assert self.usable(replica, Measure.FP8_KV)
        if order.kv_precision != replica.kv:
            self.check_switch(replica)
            # What failed is tried again after a time that doubles.
            waits = self.ladder.config.dwell_s * 2 ** min(6, replica.kv_failures - 1) if replica.kv_failures else 0
            assert self.now_s >= replica.kv_failed_s + waits
        if order.cause in ("pinned", "disabled"):
            return
        assert all(self.now_s - at_s >= self.ladder.config.dwell_s for at_s in self.changes.get(replica.name, [])[-1:])
        if order.level > 0:
            assert self.usable(replica, levels[order.level - 1])
        low, high = sorted((order.level, replica.level))
        # Of what lies between, nothing could be taken or given up: not usable, or the fp8_kv that was too dear or failed.
        between = levels[low : high - 1] if order.level > replica.level else levels[low : max(low, high - 1)]
        for measure in between:
            assert not self.usable(replica, measure) or (measure is Measure.FP8_KV and replica.kv == "auto")
        if order.level == replica.level:
            assert (replica.kv, order.kv_precision) == ("auto", "fp8")
        self.check_cause(replica, order)

    def check_cause(self, replica: Replica, order: Order) -> None:
        """That the load is as the order says, and is worth it."""
        load, state, dwell_s = replica.load, replica.state(), self.ladder.config.dwell_s
        if order.cause == "calm":
            assert order.level < replica.level
            assert state.kv_usage <= 0.5
            assert load.own_usage <= 0.5 or order.kv_precision == replica.kv
            assert load.preemptions_per_s <= 0.05
            assert replica.calm_since_s is not None and self.now_s - replica.calm_since_s >= dwell_s
        else:
            assert order.level >= replica.level
            growing = load.queue_growth_per_s >= 1 and state.kv_usage > 0.5
            assert state.kv_usage >= 0.9 or load.preemptions_per_s >= 0.5 or growing
        if order.kv_precision != replica.kv and load.prefill_tokens_per_s is not None:
            running = state.kv_usage * state.kv_tokens
            lost = min(load.prefix_hits_per_s * dwell_s, state.kv_tokens - running)
            assert running + lost <= dwell_s * load.prefill_tokens_per_s + 0.001

    def check_switch(self, replica: Replica) -> None:
        assert self.under_way <= {replica.name}
        stagger_s = self.ladder.config.stagger_s
        assert all(self.now_s - at_s >= stagger_s for at_s, name in self.switched if name != replica.name)

    def last_usable(self, replica: Replica) -> int:
        levels = self.ladder.config.levels
        return max((rung for rung, one in enumerate(levels, 1) if self.usable(replica, one)), default=0)


def world(ladder: Ladder, can_switch: tuple[bool, ...]) -> World:
    return World(ladder, [Replica(name, can) for name, can in zip(NAMES, can_switch, strict=False)])


# Longer than a change that failed waits to be tried again.
NIGHT: Final = Moment(2000.0, (FULL, FULL, FULL))
ENGINES = st.lists(st.sampled_from([True, True, True, False]), min_size=1, max_size=3).map(tuple)


def long(load: Load) -> list[Moment]:
    """The same load for longer than three replicas need for four levels, each in its turn."""
    return [Moment(10.0, (load, load, load))] * 60


def reload(ladder: Ladder, precision: dict[str, Any], model: dict[str, Any]) -> Ladder:
    """The ladder after a change of the config."""
    config, changed = ladder.config.model_copy(update=precision), ladder.model.model_copy(update=model)
    return replace(ladder, config=config, model=changed)


@given(LADDERS, ENGINES, DAYS)
def test_sustained_calm_brings_every_replica_back(ladder: Ladder, engines: tuple[bool, ...], day: list[Moment]) -> None:
    lived = world(ladder, engines)
    for moment in [*day, NIGHT, *long(FULL)[:30], *long(replace(CALM, prefill_tokens_per_s=0.1))[:15], *long(CALM)]:
        lived.live(moment)
    assert {(one.level, one.kv, one.order) for one in lived.replicas} == {(0, "auto", None)}
    settled = lived.orders
    for moment in long(CALM)[:20]:
        lived.live(moment)
    assert lived.orders == settled


@given(LADDERS, ENGINES, DAYS)
def test_sustained_pressure_takes_every_usable_measure(
    ladder: Ladder, engines: tuple[bool, ...], day: list[Moment]
) -> None:
    lived = world(ladder, engines)
    for moment in [*day, NIGHT, *long(replace(FULL, prefill_tokens_per_s=1.0))[:15], *long(FULL)]:
        lived.live(moment)
    for one in lived.replicas:
        fp8 = Measure.FP8_KV in ladder.config.levels and lived.usable(one, Measure.FP8_KV)
        assert (one.level, one.kv, one.order) == (lived.last_usable(one), "fp8" if fp8 else "auto", None)
    # Little for a cache in 8 bits, too much for the other: what goes beyond fp8 ends, and nothing else changes.
    for moment in long(Load(0.8)):
        lived.live(moment)
    for one in lived.replicas:
        rung = ladder.config.levels.index(Measure.FP8_KV) + 1 if one.kv == "fp8" else lived.last_usable(one)
        assert (one.level, one.order) == (rung, None)


@given(LADDERS, ENGINES, DAYS, DAYS, st.integers(0, 4))
def test_a_pinned_level_is_reached_and_left(
    ladder: Ladder, engines: tuple[bool, ...], day: list[Moment], next_day: list[Moment], pinned: int
) -> None:
    level = min(pinned, len(ladder.config.levels))
    lived = world(ladder, engines)
    for moment in day:
        lived.live(moment)
    lived.ladder = reload(ladder, {}, {"pinned": level})
    # However long the order takes that is under way, and the turns of the others.
    for moment in [NIGHT, *[Moment(60.0, (FULL, FULL, FULL))] * 8]:
        lived.live(moment)
    held = lived.orders
    for moment in next_day:
        lived.live(moment)
        for one in lived.replicas:
            fp8 = Measure.FP8_KV in ladder.config.levels[:level] and lived.usable(one, Measure.FP8_KV)
            assert (one.level, one.kv) == (level, "fp8" if fp8 else "auto")
    assert lived.orders == held
    lived.ladder = ladder
    for moment in long(CALM):
        lived.live(moment)
    assert {(one.level, one.kv) for one in lived.replicas} == {(0, "auto")}


@given(LADDERS, ENGINES, DAYS, CONFIGS, MODELS, st.booleans(), DAYS)
def test_what_a_new_config_does_not_allow_ends(
    ladder: Ladder,
    engines: tuple[bool, ...],
    day: list[Moment],
    config: PrecisionConfig,
    model: ModelPrecisionConfig,
    enabled: bool,
    next_day: list[Moment],
) -> None:
    lived = world(ladder, engines)
    for moment in day:
        lived.live(moment)
    lived.ladder = reload(Ladder("model", config, model), {"enabled": enabled}, {})
    for moment in [NIGHT, *[Moment(60.0, (FULL, FULL, FULL))] * 8]:
        lived.live(moment)
    for moment in next_day:
        lived.live(moment)
        for one in lived.replicas:
            assert one.level <= (lived.last_usable(one) if enabled else 0)
            assert one.kv == "auto" or one.kv_failures or (enabled and Measure.FP8_KV in config.levels[: one.level])
            assert one.kv == "auto" or lived.usable(one, Measure.FP8_KV)


SAMPLES = st.lists(
    st.tuples(st.floats(0, 3), st.integers(0, 50), st.integers(0, 50), st.integers(0, 500), st.booleans()),
    max_size=60,
)


@given(st.floats(1, 60), SAMPLES)
def test_rates_are_never_below_nothing_nor_above_what_came(
    window_s: float, steps: list[tuple[float, int, int, int, bool]]
) -> None:
    meter = PressureMeter(window_s)
    at_s, preemptions, hits = 0.0, 0, 0
    for passes_s, preempted, waiting, hit, restarts in steps:
        at_s += passes_s
        preemptions, hits = (0, 0) if restarts else (preemptions + preempted, hits + hit)
        meter.add(Sample(at_s, 0.5, preemptions, waiting, hits))
        rates = meter.rates()
        assert 0 <= rates.preemptions_per_s <= preemptions / (window_s / 2)
        assert 0 <= rates.queue_growth_per_s <= 50 / (window_s / 2)
        assert 0 <= rates.prefix_hits_per_s <= hits / (window_s / 2)
