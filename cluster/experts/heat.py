"""How hot experts are: tokens by layer and expert with exponential decay, which are hot, and which traffic heats them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from cluster.config.experts import ExpertsConfig
from cluster.experts.load import Counts, ExpertShape, entropy

Reals = npt.NDArray[np.float64]

MAX_TRAFFIC: Final = 16
"""Kinds of traffic that are told apart; tokens of further ones count in the heat alone."""

_NOTHING: Final = 1e-9
"""Decayed tokens below which nothing is left."""


@dataclass(frozen=True, slots=True)
class HotExpert:
    """One expert that is hot."""

    layer: int
    expert: int
    share: float
    """Of its layer's tokens, 0 to 1."""
    times: float
    """That share as a multiple of the even one."""
    since_s: float
    """When it began to count as hot, on the clock of the meter."""
    traffic: tuple[tuple[str, float], ...] = ()
    """Kinds of traffic and the share of this expert's tokens, 0 to 1, that came from each; most first.

    Of tokens whose kind is known, which are those of requests that ended.
    """


@dataclass(frozen=True, slots=True)
class Heat:
    """The experts of one model at one time. A token counts once for each of its top-k experts, `tokens` apart."""

    at_s: float
    shape: ExpertShape
    decayed: Reals
    """Tokens by layer and expert, (layers, experts); those that are a half-life old count half."""
    tokens: Reals
    """Tokens by layer, (layers,), each once."""
    per_s: Reals
    """Tokens a second by layer and expert, (layers, experts): the steady rate that would have led to `decayed`."""
    shares: Reals
    """Of the layer's tokens, (layers, experts): each layer adds up to 1, or to 0 if it has had none."""
    imbalance: Reals
    """The largest share by the mean one, (layers,): 1 is even, `experts` is all on one, 0 stands for no tokens."""
    entropy: Reals
    """How evenly tokens spread over the experts of a layer, (layers,): 0 (one expert) to 1 (evenly)."""
    hot: tuple[HotExpert, ...] = ()
    """The hottest, as a multiple of the even share, first."""
    by_traffic: dict[str, Reals] = field(default_factory=dict)
    """Shares by kind of traffic; see `shares`."""


@dataclass(slots=True)
class _Told:
    """What one replica told last."""

    since_s: float
    total: Counts | None = None
    traffic: dict[str, Counts] = field(default_factory=dict)


class HeatMeter:
    """Takes in what replicas count since their start, and says what is hot.

    Tokens decay exactly whatever the time between samples: by 2 ** (-dt / half-life). An expert becomes hot once its share
    was above `hot` times the even one for `dwell_s`, and cool once it was below `cool` times, or its layer had fewer than
    `min_tokens`, for as long. Both are looked at once per moment, after all that was added for it: the order of replicas
    does not matter. A time before the latest one counts as that one.
    """

    def __init__(self, shape: ExpertShape, config: ExpertsConfig) -> None:
        self._shape = shape
        self._config = config
        self._told: dict[str, _Told] = {}
        # Integers until the moment is over: their sum does not depend on the order in which replicas are added.
        self._fresh = shape.zeros()
        self._fresh_traffic: dict[str, Counts] = {}
        pairs = (shape.layers, shape.experts)
        self._heat = np.zeros(pairs)
        self._traffic: dict[str, Reals] = {}
        self._at_s: float | None = None
        self._began_s = 0.0
        self._hot = np.zeros(pairs, np.bool_)
        self._hot_since = np.full(pairs, np.nan)
        self._turned_since = np.full(pairs, np.nan)
        """Since when an expert has been where it changes to the other state if it stays; NaN: it is not there."""

    @property
    def shape(self) -> ExpertShape:
        """Of the model."""
        return self._shape

    def follow(self, config: ExpertsConfig) -> None:
        """Go by another config from now on; what was measured is kept."""
        self._config = config

    def add(self, replica: str, counts: Counts, at_s: float) -> None:
        """Take in the tokens (layers, experts) of a replica since its engine's start.

        What it tells first is the base of what it tells later. Counts that fell are of an engine that was started anew:
        all of them are new. Raises `ValueError` if they have another shape.
        """
        self._check(counts)
        self._advance(at_s)
        told = self._told_by(replica)
        if told.total is not None:
            fell = bool((counts < told.total).any())
            if fell:
                told.traffic.clear()
            self._fresh += counts if fell else counts - told.total
        told.total = counts.copy()

    def add_traffic(self, traffic: str, replica: str, counts: Counts, at_s: float) -> None:
        """Take in the part of a replica's tokens that came from one kind of traffic; call it after `add`.

        As `add`, except that the first tokens of a kind are all new if the replica itself is not new at that time.
        """
        self._check(counts)
        if traffic not in self._traffic and len(self._traffic) >= MAX_TRAFFIC:
            return
        self._advance(at_s)
        told = self._told_by(replica)
        before = told.traffic.get(traffic)
        if before is not None and not (counts < before).any():
            new = counts - before
        elif before is None and told.since_s == self._at_s:
            new = self._shape.zeros()
        else:
            new = counts
        self._traffic.setdefault(traffic, np.zeros(counts.shape))
        self._fresh_traffic[traffic] = self._fresh_traffic.get(traffic, 0) + new
        told.traffic[traffic] = counts.copy()

    def forget(self, replica: str) -> None:
        """A replica is gone. Its tokens cool down with the others; one that comes back under its name is new."""
        self._told.pop(replica, None)

    def replicas(self) -> tuple[str, ...]:
        """Those that told something and were not forgotten."""
        return tuple(self._told)

    def observe(self, at_s: float) -> None:
        """Let time pass up to `at_s`, and see what is hot then."""
        self._advance(at_s)
        self._settle()

    def heat(self, at_s: float) -> Heat:
        """All of it at `at_s`."""
        self.observe(at_s)
        shares = _shares(self._heat)
        times = shares * self._shape.experts
        return Heat(
            at_s=self._now(),
            shape=self._shape,
            decayed=self._heat.copy(),
            tokens=self._tokens(),
            per_s=self._heat / self._seconds(),
            shares=shares,
            imbalance=times.max(axis=1),
            entropy=entropy(self._heat),
            hot=self._hottest(shares, times),
            by_traffic={name: _shares(decayed) for name, decayed in sorted(self._traffic.items()) if decayed.any()},
        )

    def _check(self, counts: Counts) -> None:
        if counts.shape != self._heat.shape:
            raise ValueError(f"the counts have the shape {counts.shape}, the model {self._heat.shape}")

    def _told_by(self, replica: str) -> _Told:
        return self._told.setdefault(replica, _Told(self._now()))

    def _now(self) -> float:
        return 0.0 if self._at_s is None else self._at_s

    def _advance(self, at_s: float) -> None:
        if self._at_s is None:
            self._at_s = self._began_s = at_s
        passed_s = at_s - self._at_s
        if passed_s <= 0:
            return
        self._settle()
        kept = 2.0 ** (-passed_s / self._config.half_life_s)
        for decayed in (self._heat, *self._traffic.values()):
            np.multiply(decayed, kept, out=decayed)
            decayed[decayed < _NOTHING] = 0
        self._at_s = at_s

    def _settle(self) -> None:
        """The moment as it is now that everything was added: fresh tokens count, and experts become hot or cool."""
        self._heat += self._fresh
        self._fresh[:] = 0
        for name, counts in self._fresh_traffic.items():
            self._traffic[name] += counts
        self._fresh_traffic.clear()
        now, config = self._now(), self._config
        times = _shares(self._heat) * self._shape.experts
        enough = (self._tokens() >= config.min_tokens)[:, None]
        turned = np.where(self._hot, ~enough | (times < config.cool), enough & (times > config.hot))
        since = np.where(turned, np.where(np.isnan(self._turned_since), now, self._turned_since), np.nan)
        changed = turned & (now - since >= config.dwell_s)
        self._hot ^= changed
        self._hot_since[changed] = now
        since[changed] = np.nan
        self._turned_since = since

    def _tokens(self) -> Reals:
        return np.asarray(self._heat.sum(axis=1) / self._shape.top_k)

    def _seconds(self) -> float:
        """Seconds that `decayed` stands for: the integral of the decay since the meter began."""
        lives = (self._now() - self._began_s) / self._config.half_life_s
        return max(_NOTHING, -math.expm1(-lives * math.log(2)) * self._config.half_life_s / math.log(2))

    def _hottest(self, shares: Reals, times: Reals) -> tuple[HotExpert, ...]:
        layers, experts = np.nonzero(self._hot)
        order = np.argsort(-times[layers, experts], kind="stable")
        return tuple(
            HotExpert(
                layer=layer,
                expert=expert,
                share=float(shares[layer, expert]),
                times=float(times[layer, expert]),
                since_s=float(self._hot_since[layer, expert]),
                traffic=self._heated_by(layer, expert),
            )
            for layer, expert in zip(layers[order].tolist(), experts[order].tolist(), strict=True)
        )

    def _heated_by(self, layer: int, expert: int) -> tuple[tuple[str, float], ...]:
        of_kind = {name: float(decayed[layer, expert]) for name, decayed in self._traffic.items()}
        known = math.fsum(of_kind.values())
        most_first = sorted(of_kind.items(), key=lambda item: (-item[1], item[0]))
        return tuple((name, tokens / known) for name, tokens in most_first if tokens > 0)


def _shares(decayed: Reals) -> Reals:
    """Of each layer's tokens, (layers, experts); 0 in layers without any."""
    totals = decayed.sum(axis=1, keepdims=True)
    shares: Reals = np.divide(decayed, totals, out=np.zeros(decayed.shape), where=totals > 0)
    return shares
