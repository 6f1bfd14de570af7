"""The ingress takes in what replicas count, tells how hot experts are, and which requests were wide."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.experts.load import ExpertLoad, ExpertShape
from deployments.channel.receiver import AttachedReplica, ChannelReceiver
from deployments.engines.protocol import TokenUsage
from deployments.ingress.account import Call
from deployments.ingress.experts import ExpertsControl
from deployments.telemetry.metrics import IngressMetrics
from tests.unit.ingress.sparse_models import SHAPE, config, counts, join, load, use

LABELS = ("model", "layer", "expert", "width")


class World:
    """A control whose looks a test makes itself."""

    def __init__(self, **experts: Any) -> None:
        self.channel = ChannelReceiver("a")
        made = config(**experts)
        self.metrics = IngressMetrics("ingress", made.models)
        self.control = ExpertsControl(made, self.channel, self.metrics)
        self.began = asyncio.get_running_loop().time()

    async def tell(self, replica: AttachedReplica, told: ExpertLoad | None, at_s: float) -> None:
        """What the replica tells, and a look so many seconds after the beginning."""
        replica.load = told
        await self.control.look(self.began + at_s)

    def samples(self, name: str) -> dict[tuple[str, ...], float]:
        """A metric's series by the values of their labels."""
        families = text_string_to_metric_families(self.metrics.render().decode())
        return {
            tuple(sample.labels[label] for label in LABELS if label in sample.labels): sample.value
            for family in families
            for sample in family.samples
            if sample.name == name
        }


async def test_heat_follows_what_replicas_tell_and_who_heats() -> None:
    here = World()
    replica = join(here.channel, "r1")
    await here.tell(replica, load(counts()), 0.0)
    first = counts((0, 1, 900), even=100)
    await here.tell(replica, load(first, code=counts((0, 1, 600)), chat=counts((0, 1, 300))), 1.0)
    await here.tell(replica, load(first, code=counts((0, 1, 600)), chat=counts((0, 1, 300))), 4.0)
    heat = here.control.heat("moe")
    assert heat is not None
    assert heat.shares[0].tolist() == pytest.approx([100 / 1300, 1000 / 1300, 100 / 1300, 100 / 1300])
    assert [(one.layer, one.expert) for one in heat.hot] == [(0, 1)]
    assert heat.hot[0].traffic == (("code", pytest.approx(2 / 3)), ("chat", pytest.approx(1 / 3)))
    assert here.control.heat("big") is None


async def test_replicas_add_up_and_what_they_had_before_is_only_their_base() -> None:
    here = World()
    old, new = join(here.channel, "old"), join(here.channel, "new")
    old.load = load(counts((0, 0, 10_000), even=50))
    await here.tell(new, load(counts()), 0.0)
    old.load = load(counts((0, 0, 10_000), even=60))
    await here.tell(new, load(counts((1, 2, 40))), 0.0)
    heat = here.control.heat("moe")
    assert heat is not None
    assert heat.shares[0].tolist() == [0.25] * 4
    assert heat.shares[1].tolist() == pytest.approx([0.125, 0.125, 0.625, 0.125])
    assert here.samples("pointsman_expert_tokens_total")["moe", "1", "2"] == 50


async def test_the_first_tokens_of_a_replica_that_was_idle_count() -> None:
    here = World()
    replica = join(here.channel, "r1")
    await here.tell(replica, None, 0.0)
    await here.tell(replica, None, 4.0)
    await here.tell(replica, load(counts((0, 3, 20)), code=counts((0, 3, 20))), 5.0)
    heat = here.control.heat("moe")
    assert heat is not None
    assert heat.shares[0].tolist() == [0, 0, 0, 1]
    assert set(heat.by_traffic) == {"code"}
    assert here.samples("pointsman_expert_tokens_total")["moe", "0", "3"] == 20


async def test_an_engine_that_was_started_anew_makes_no_negative_heat() -> None:
    here = World()
    replica = join(here.channel, "r1")
    await here.tell(replica, load(counts(even=100)), 0.0)
    await here.tell(replica, load(counts((0, 2, 30))), 1.0)
    heat = here.control.heat("moe")
    assert heat is not None
    assert heat.shares[0].tolist() == [0, 0, 1, 0]
    assert here.samples("pointsman_expert_tokens_total")["moe", "0", "2"] == 30


async def test_what_is_gone_is_forgotten_and_what_comes_under_its_name_is_new() -> None:
    here = World()
    replica = join(here.channel, "r1")
    await here.tell(replica, load(counts(even=5)), 0.0)
    del here.channel._replicas["r1"]
    await here.control.look(here.began + 1)
    assert here.control._watched == {}
    assert here.control._models["moe"].meter.replicas() == ()
    await here.tell(join(here.channel, "r1"), load(counts(even=500)), 2.0)
    heat = here.control.heat("moe")
    assert heat is not None
    assert not heat.decayed.any()


async def test_while_replicas_are_replaced_by_another_form_the_more_frequent_one_is_heard() -> None:
    here = World()
    other = ExpertShape(1, 8, 1)
    first, second, third = (join(here.channel, f"r{number}") for number in range(3))
    for replica in (first, second):
        replica.load = load(counts(even=1))
    await here.tell(third, load(counts(even=9, shape=other), other), 0.0)
    assert here.control._models["moe"].meter.shape == SHAPE
    del here.channel._replicas["r0"], here.channel._replicas["r1"]
    await here.tell(third, load(counts(even=10, shape=other), other), 1.0)
    assert here.control._models["moe"].meter.shape == other
    await here.tell(third, load(counts(even=12, shape=other), other), 2.0)
    heat = here.control.heat("moe")
    assert heat is not None
    assert heat.decayed.tolist() == [[pytest.approx(2.0, rel=0.1)] * 8]


async def test_a_bad_count_stops_neither_the_loop_nor_other_models(caplog: pytest.LogCaptureFixture) -> None:
    here = World()
    bad, beside, good = join(here.channel, "bad"), join(here.channel, "beside"), join(here.channel, "good", "mute")
    bad.load, beside.load = ExpertLoad(SHAPE, b"too short"), load(counts(even=3))
    with caplog.at_level(logging.ERROR):
        await here.tell(good, load(counts(even=3)), 0.0)
        here.control.ended([None])  # type: ignore[list-item]
    assert here.control.heat("mute") is not None
    assert here.control._watched["beside"].counts is not None
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    # The next look goes on.
    await here.tell(bad, load(counts(even=3)), 1.0)
    assert here.control._watched["bad"].counts is not None


async def test_another_config_keeps_the_heat_and_drops_models_that_went() -> None:
    here = World()
    for name, model in (("r1", "moe"), ("r2", "mute")):
        join(here.channel, name, model).load = load(counts())
    await here.control.look(here.began)
    for replica in here.channel.attached():
        replica.load = load(counts((0, 1, 400), even=100))
    await here.control.look(here.began + 1)
    await here.control.look(here.began + 4)
    less = config(hot=3.0, cool=2.9)
    less.models.pop("mute")
    here.control.follow(less)
    heat = here.control.heat("moe")
    assert heat is not None
    assert len(heat.hot) == 1
    assert here.control.heat("mute") is None
    await here.control.look(here.began + 5)
    await here.control.look(here.began + 8)
    # Two and a half times the even share is below the new bound.
    assert here.samples("pointsman_experts_hot") == {("moe",): 0}


async def test_metrics_are_bounded_by_the_config() -> None:
    here = World(metric_series=7)
    replica = join(here.channel, "r1")
    await here.tell(replica, load(counts()), 0.0)
    await here.tell(replica, load(counts((0, 1, 60), even=20)), 0.0)
    assert here.samples("pointsman_expert_tokens_total") == {}
    assert here.samples("pointsman_expert_imbalance_ratio") == {
        ("moe", "0"): pytest.approx(80 / 35),
        ("moe", "1"): pytest.approx(1),
    }
    entropy = here.samples("pointsman_expert_entropy_ratio")
    assert entropy["moe", "0"] < entropy["moe", "1"] == pytest.approx(1)
    here.control.follow(config(metric_series=8))
    tokens = here.samples("pointsman_expert_tokens_total")
    assert len(tokens) == 8
    assert tokens["moe", "0", "1"] == 80


async def test_requests_stand_in_the_tail_table_by_how_wide_they_were() -> None:
    here = World()
    narrow, wide = use((0, 0, 4), (1, 1, 4), even=0), use()
    calls = [Call("moe", 1, usage=TokenUsage(5, 10), seconds=seconds, experts=narrow) for seconds in (1.0, 2.0, 3.0)]
    calls.append(Call("moe", 1, usage=TokenUsage(5, 2), seconds=8.0, experts=wide))
    calls += [Call("big", 1, seconds=1.0), Call("gone", 1, seconds=1.0, experts=wide)]
    here.control.ended(calls)
    table = here.control.tail("moe")
    assert table is not None
    rows = {row.name: row for row in table.rows if row.requests}
    assert {name: row.requests for name, row in rows.items()} == {"le_0.25": 3, "le_1": 1}
    assert rows["le_0.25"].seconds is not None and rows["le_0.25"].seconds.p50 == 2.0
    assert rows["le_1"].seconds_per_token is not None and rows["le_1"].seconds_per_token.p50 == 4.0
    assert here.control.tail("big") is here.control.tail("gone") is None
    assert here.samples("pointsman_request_experts_ratio_count") == {("moe",): 4}
    assert here.samples("pointsman_experts_request_seconds_sum") == {("moe", "le_0.25"): 6.0, ("moe", "le_1"): 8.0}


async def test_it_looks_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.ingress.experts.LOOK_S", 0.01)
    here = World()
    join(here.channel, "r1").load = load(counts())
    here.control.start()
    async with asyncio.timeout(5):
        while here.control.heat("moe") is None:
            await asyncio.sleep(0.01)
    here.control.stop()
    heat = here.control.heat("moe")
    assert heat is not None
    assert np.all(heat.imbalance == 0)
