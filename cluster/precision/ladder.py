"""Which replica of a model changes its level or its KV precision now, and why. Pure functions.

A replica goes down one usable rung at a time while it is pressed, and up one at a time once it is calm; it rests `dwell_s`
seconds between two changes. A switch of the KV precision costs what is in the cache: two replicas of a model never switch at
once, and none switches if that cannot be earned back while it rests.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from cluster.config.cluster import ClusterConfig
from cluster.config.precision import ModelPrecisionConfig, PrecisionConfig
from cluster.precision.measures import DISABLED, FP8, OWN, PINNED, TURNING_AWAY, Measure, name_of
from cluster.precision.replica import ReplicaState, is_calm, is_pressed, switch_cost_s

__all__ = ["Ladder", "Order", "ReplicaState", "decide", "is_calm", "is_pressed", "switch_cost_s"]


_OPERATORS: Final = frozenset({PINNED, DISABLED})
"""Causes that are not pressure, but somebody's word."""


@dataclass(frozen=True, slots=True)
class Order:
    """What one replica is to change to."""

    replica: str
    level: int
    kv_precision: str
    reason: str
    """A sentence for people, with the figures."""
    cause: str
    """A label: `kv_usage`, `preemptions`, `queue_growth`, `calm`, `pinned` or `disabled`."""


@dataclass(frozen=True, slots=True)
class Ladder:
    """What the config says of one model, looked up once."""

    name: str
    """Of the model."""
    config: PrecisionConfig
    model: ModelPrecisionConfig
    own_kv: str = OWN
    """`fp8` if the model's own KV cache is in 8 bits already."""

    @classmethod
    def of(cls, config: ClusterConfig, model: str) -> Ladder:
        """The ladder of the model of this name."""
        found = config.models[model]
        return cls(model, config.precision, found.precision, found.engine.kv_cache_dtype)

    @property
    def kv_rung(self) -> int | None:
        """The level that adds `fp8_kv`; None: none does."""
        levels = self.config.levels
        return levels.index(Measure.FP8_KV) + 1 if Measure.FP8_KV in levels else None

    @property
    def is_held(self) -> bool:
        """Whether the operator decides on the level, not pressure."""
        return not self.config.enabled or self.model.pinned is not None

    def allows_fp8(self, level: int) -> bool:
        """Whether the KV cache may be in 8 bits at `level`."""
        return self.kv_rung is not None and level >= self.kv_rung

    def unusable(self, measure: Measure, replica: ReplicaState) -> str | None:
        """Why `measure` cannot be taken for `replica`; None: it can."""
        if measure is Measure.TWIN and self.model.twin is None:
            return "no twin is configured"
        return self._fp8_unusable(replica) if measure is Measure.FP8_KV else None

    def _fp8_unusable(self, replica: ReplicaState) -> str | None:
        if self.own_kv == FP8:
            return "the model's own KV cache is in 8 bits already"
        if FP8 not in replica.kv_precisions:
            return "its engine cannot switch the KV cache to fp8"
        quality = self.model.kv_quality.get(FP8)
        if quality is None:
            return f"its quality is not measured: run `pointsman precision measure {self.name}`"
        if quality.agreement < self.config.min_agreement:
            return f"it agrees on {quality.agreement:.1%} of the tokens, {self.config.min_agreement:.1%} are asked for"
        if quality.kl > self.config.max_kl:
            return f"its distributions diverge by {quality.kl:.3g} nats, {self.config.max_kl:.3g} are allowed"
        return None

    def too_dear(self, replica: ReplicaState) -> str | None:
        """Why a switch of the KV precision would not be earned back within the dwell time; None: it would, or who knows."""
        dwell_s = self.config.dwell_s
        cost_s = switch_cost_s(replica, dwell_s)
        if cost_s is None or cost_s <= dwell_s:
            return None
        return f"a switch would cost {cost_s:.3g} s, more than the {dwell_s:g} s within which it must be earned back"

    def waits_for_retry(self, replica: ReplicaState, now_s: float) -> str | None:
        """Why a switch of the KV precision is not tried again yet; None: none failed, or long enough ago."""
        if now_s >= replica.retry_at_s(self.config.dwell_s):
            return None
        times = "once" if replica.kv_failures == 1 else f"{replica.kv_failures} times"
        return f"a switch failed {times} and is tried again later"

    def above(self, replica: ReplicaState) -> int:
        """The next lower level whose last measure is in force for `replica`, or 0.

        A level at which `fp8_kv` was passed over has nothing to give up, so it is jumped over like one that is not usable.
        """
        level = self._highest_usable(replica, min(replica.level - 1, len(self.config.levels)))
        if level and level == self.kv_rung and replica.kv_precision == OWN:
            return self._highest_usable(replica, level - 1)
        return level

    def _highest_usable(self, replica: ReplicaState, level: int) -> int:
        while level > 0 and self.unusable(self.config.levels[level - 1], replica) is not None:
            level -= 1
        return max(0, level)

    def valid(self, replica: ReplicaState) -> tuple[int, str]:
        """Level and KV precision that `replica` may keep: its own, unless a measure in force is not usable any more."""
        level = self._highest_usable(replica, min(replica.level, len(self.config.levels)))
        if replica.kv_precision == OWN or not replica.kv_precisions:
            # An engine that cannot switch stays what it is: an order to change that would never be carried out.
            return level, replica.kv_precision
        keeps = self.allows_fp8(level) and self.unusable(Measure.FP8_KV, replica) is None
        return level, replica.kv_precision if keeps else OWN

    def is_calm(self, replica: ReplicaState) -> bool:
        """Whether `replica` has no pressure that the level above it could not bear; `calm_since_s` is since when.

        Where that level is without `fp8_kv`, what is in use must be little for the smaller cache.
        """
        leaves = replica.kv_precision != OWN and not self.allows_fp8(self.above(replica))
        return is_calm(self.config.leave, replica, own_cache=leaves)


def decide(
    ladder: Ladder, replicas: Sequence[ReplicaState], now_s: float, led: Collection[str] | None = None
) -> tuple[Order, ...]:
    """Orders for the replicas of one model, by name; only for those that change, and of these for the `led` (None: all).

    At most one of them switches the KV precision, and none while another replica is switching or did so less than
    `stagger_s` seconds ago. A replica that has to wait for its turn gets no order, but for the level that an operator holds
    it at.
    """
    orders, switches = [], []
    for one in replicas:
        if one.switching or not (led is None or one.name in led):
            continue
        order = _wish(ladder, one, now_s)
        if order is not None and order.kv_precision != one.kv_precision and ladder.waits_for_retry(one, now_s):
            order = _without_switch(one, order)
        if order is None:
            continue
        if order.kv_precision == one.kv_precision:
            orders.append(order)
        elif _has_turn(ladder, one, replicas, now_s):
            switches.append((one, order))
        elif order.cause in _OPERATORS and (only := _without_switch(one, order)) is not None:
            orders.append(only)
    switches.sort(key=lambda one: _urgency(one[0]))
    orders += [order for _, order in switches[:1]]
    # The level that an operator holds them at waits for nobody's turn.
    orders += [
        only
        for one, order in switches[1:]
        if order.cause in _OPERATORS and (only := _without_switch(one, order)) is not None
    ]
    return tuple(sorted(orders, key=lambda order: order.replica))


def _without_switch(one: ReplicaState, order: Order) -> Order | None:
    """The order without its change of the KV precision; None: there is nothing else in it."""
    return None if order.level == one.level else replace(order, kv_precision=one.kv_precision)


def _urgency(replica: ReplicaState) -> tuple[float, float, str]:
    """The most pressed first."""
    return -replica.kv_usage, -replica.preemptions_per_s, replica.name


def _has_turn(ladder: Ladder, replica: ReplicaState, replicas: Sequence[ReplicaState], now_s: float) -> bool:
    others = [other for other in replicas if other.name != replica.name]
    return all(not one.switching and now_s - one.kv_switched_s >= ladder.config.stagger_s for one in others)


def _wish(ladder: Ladder, replica: ReplicaState, now_s: float) -> Order | None:
    """What the replica would change to if it were alone."""
    order = _at_once(ladder, replica)
    if order is None:
        last_s = max(replica.level_since_s, replica.kv_switched_s, replica.kv_failed_s)
        rested = now_s - last_s >= ladder.config.dwell_s
        if ladder.is_held or not rested:
            return None
        pressed = is_pressed(ladder.config.enter, ladder.config.leave, replica)
        order = _down(ladder, replica, now_s, *pressed) if pressed is not None else _up(ladder, replica, now_s)
    return order


def _at_once(ladder: Ladder, replica: ReplicaState) -> Order | None:
    """What the operator decides needs no rest: switched off, pinned, or a measure that is not usable any more."""
    off = OWN if replica.kv_precisions else replica.kv_precision
    if not ladder.config.enabled:
        return _unless_there(replica, Order(replica.name, 0, off, "the precision ladder is switched off", DISABLED))
    pinned = ladder.model.pinned
    if pinned is not None:
        level = min(pinned, len(ladder.config.levels))
        reason, kv = f"the operator holds it at level {_label(ladder, level)}", off
        if ladder.allows_fp8(level):
            why = ladder.unusable(Measure.FP8_KV, replica)
            reason += f", without fp8_kv: {why}" if why is not None else ""
            kv = FP8 if why is None else off
        return _unless_there(replica, Order(replica.name, level, kv, reason, PINNED))
    level, kv = ladder.valid(replica)
    reason = f"{_gone(ladder, replica)}; back to level {_label(ladder, level)}, KV cache {kv}"
    return _unless_there(replica, Order(replica.name, level, kv, reason, DISABLED))


def _gone(ladder: Ladder, replica: ReplicaState) -> str:
    """Why what was in force may not be any more."""
    levels = ladder.config.levels
    if replica.level > len(levels):
        return f"there are only {len(levels)} levels"
    in_force = [*levels[max(0, replica.level - 1) : replica.level]]
    if replica.kv_precision != OWN and ladder.allows_fp8(replica.level):
        in_force.append(Measure.FP8_KV)
    why = {measure: ladder.unusable(measure, replica) for measure in in_force}
    gone = [f"{measure} is not usable any more: {reason}" for measure, reason in why.items() if reason is not None]
    return "; ".join(gone) or f"level {_label(ladder, replica.level)} has no KV cache in {replica.kv_precision}"


def _unless_there(replica: ReplicaState, order: Order) -> Order | None:
    return None if (order.level, order.kv_precision) == (replica.level, replica.kv_precision) else order


def _down(ladder: Ladder, replica: ReplicaState, now_s: float, cause: str, sentence: str) -> Order | None:
    """One usable rung down; an `fp8_kv` that was passed over is taken before the next rung. None: there is no more."""
    levels = ladder.config.levels
    missed = ladder.allows_fp8(replica.level) and replica.kv_precision == OWN and cause != "queue_growth"
    if missed and _fp8_passed_over(ladder, replica, now_s) is None:
        label = _label(ladder, replica.level)
        reason = f"{sentence}; it stays at level {label} and takes the fp8_kv that it passed over"
        return Order(replica.name, replica.level, FP8, reason, cause)
    passed: list[str] = []
    for level in range(replica.level + 1, len(levels) + 1):
        measure = levels[level - 1]
        if measure in TURNING_AWAY and not _in_want(ladder, replica):
            # A full cache is a well used one as long as nobody waits for it and nobody is thrown out of it.
            return None
        takes_fp8 = measure is Measure.FP8_KV and replica.kv_precision == OWN
        why = _fp8_passed_over(ladder, replica, now_s) if takes_fp8 else ladder.unusable(measure, replica)
        if why is None:
            reason = "; ".join([f"{sentence}; down to level {_label(ladder, level)}", *passed])
            return Order(replica.name, level, FP8 if takes_fp8 else replica.kv_precision, reason, cause)
        passed.append(f"{measure} is passed over: {why}")
    return None


def _in_want(ladder: Ladder, replica: ReplicaState) -> bool:
    """Whether requests suffer from the lack of KV memory."""
    return replica.waiting >= 1 or replica.preemptions_per_s > ladder.config.leave.preemptions_per_s


def _fp8_passed_over(ladder: Ladder, replica: ReplicaState, now_s: float) -> str | None:
    return (
        ladder.unusable(Measure.FP8_KV, replica) or ladder.waits_for_retry(replica, now_s) or ladder.too_dear(replica)
    )


def _up(ladder: Ladder, replica: ReplicaState, now_s: float) -> Order | None:
    """One rung up if the replica has been calm for long enough."""
    since = replica.calm_since_s
    if replica.level == 0 or since is None or now_s - since < ladder.config.dwell_s or not ladder.is_calm(replica):
        return None
    level = ladder.above(replica)
    # An engine that cannot switch keeps what it has, as in `valid`.
    leaves = replica.kv_precision != OWN and not ladder.allows_fp8(level) and bool(replica.kv_precisions)
    if leaves and ladder.too_dear(replica) is not None:
        return None
    reason = f"calm for {now_s - since:.0f} s, {replica.kv_usage:.0%} of its KV cache is in use; "
    reason += f"up to level {_label(ladder, level)}"
    return Order(replica.name, level, OWN if leaves else replica.kv_precision, reason, "calm")


def _label(ladder: Ladder, level: int) -> str:
    return f"{level} ({name_of(ladder.config.levels, level)})"
