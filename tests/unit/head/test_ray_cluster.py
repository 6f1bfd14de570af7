"""How long a cluster that stops waits for what is under way."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import ray
from ray import serve

from cluster.config.operations import RayConfig
from deployments.head import ray_cluster
from deployments.head.ray_cluster import RayCluster


class World:
    """Serve with two applications that go `gone_after_s` seconds after they were deleted, and its clock.

    Beside them is one of somebody else, which stays.
    """

    def __init__(self, gone_after_s, others=()):
        self.others = dict.fromkeys(others, 3)
        self.now = 100.0
        self.gone_at = self.now + gone_after_s
        self.done = []
        self.told_at = []

    def status(self):
        left = {} if self.now >= self.gone_at else {"ingress": 1, "model": 2}
        return SimpleNamespace(applications=left | self.others)

    def delete(self, name, _blocking):
        assert not _blocking
        self.done.append(f"delete {name}")
        self.told_at.append(self.now - 100.0)

    def sleep(self, seconds):
        self.now += seconds

    def shutdown(self):
        self.done.append("serve")


def stop(world, monkeypatch, drain_s, address=None, lame_duck_s=0.0):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "shutdown", lambda: world.done.append("ray"))
    for name in ("status", "delete", "shutdown"):
        monkeypatch.setattr(serve, name, getattr(world, name))
    monkeypatch.setattr(ray_cluster, "time", SimpleNamespace(monotonic=lambda: world.now, sleep=world.sleep))
    RayCluster(RayConfig(address=address)).stop(drain_s, ["ingress", "model", "never-deployed"], lame_duck_s)


# Serve's own shutdown gives up after 30 seconds.
@pytest.mark.parametrize(("takes_s", "drain_s", "waited_s"), [(5, 120, 5), (90, 120, 90), (500, 120, 120), (5, 0, 0)])
def test_applications_may_drain_as_long_as_they_are_allowed_to(monkeypatch, takes_s, drain_s, waited_s):
    world = World(takes_s)
    stop(world, monkeypatch, drain_s)
    assert world.done == ["delete ingress", "delete model", "serve", "ray"]
    assert world.now - 100.0 == pytest.approx(waited_s, abs=0.3)


def test_models_are_there_as_long_as_the_ingress_takes_requests(monkeypatch):
    world = World(30)
    stop(world, monkeypatch, 120, lame_duck_s=20)
    # Serve takes a moment to tell the ingress, which then takes requests for as long as it was given.
    assert world.told_at == [0.0, 20.0 + ray_cluster.TELLING_S]
    assert world.now - 100.0 == pytest.approx(30, abs=0.3)


def test_nobody_waits_for_an_ingress_that_is_not_there(monkeypatch):
    world = World(0)
    stop(world, monkeypatch, 120, lame_duck_s=20)
    assert world.now == 100.0


def test_on_a_cluster_that_ran_already_what_others_serve_stays(monkeypatch):
    world = World(5, others=["somebody-elses"])
    stop(world, monkeypatch, 120, address="auto")
    assert world.done == ["delete ingress", "delete model", "ray"]
    assert world.now - 100.0 == pytest.approx(5, abs=0.3)


def test_a_serve_that_does_not_answer_is_no_reason_to_leave_ray_running(monkeypatch):
    world = World(5)
    monkeypatch.setattr(world, "status", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stop(world, monkeypatch, 10)
    assert world.done == ["ray"]
