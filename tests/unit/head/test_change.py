"""The steps of a change, with a Serve that does what it is told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.schema import ApplicationStatus

from cluster.config.cluster import ClusterConfig
from deployments.head import change as change_module
from deployments.head.change import ChangeError, Changer, Running

MODEL = {"kind": "dense", "roles": ["strong", "fast", "fluency"], "source": "embedded:dense"}
OTHER = {"kind": "mini", "roles": ["helper"], "source": "embedded:mini"}


def config(models: dict[str, Any], **more: Any) -> ClusterConfig:
    return ClusterConfig.model_validate({"models": models} | more)


OLD = config({"a": MODEL})
RUNNING = Running(OLD, {"a": "model-a"})


class FakeServe:
    """Applications by name; those in `failing` never come up."""

    def __init__(self) -> None:
        self.applications: dict[str, Any] = {"model-a": None, "ingress": None}
        self.failing: set[str] = set()
        self.refused: set[str] = set()
        """Applications that Serve does not take once."""
        self.log: list[str] = []

    def run(self, name: str, application: Any) -> None:
        self.log.append(f"run {name}")
        if name in self.refused:
            self.refused.remove(name)
            raise RuntimeError("Serve's controller is away")
        self.applications[name] = application

    def status(self) -> SimpleNamespace:
        def of(name: str) -> SimpleNamespace:
            failed = name in self.failing
            status = ApplicationStatus.DEPLOY_FAILED if failed else ApplicationStatus.RUNNING
            return SimpleNamespace(status=status, message="no room", deployments={})

        return SimpleNamespace(applications={name: of(name) for name in self.applications})

    def delete(self, name: str, _blocking: bool) -> None:
        assert not _blocking
        self.log.append(f"delete {name}")
        del self.applications[name]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> FakeServe:
    fake = FakeServe()
    monkeypatch.setattr(change_module, "serve", fake)
    monkeypatch.setattr(change_module, "run_application", fake.run)
    monkeypatch.setattr(change_module, "run_model", lambda name, _config, _path, _dir, at: fake.run(at, name))
    monkeypatch.setattr(change_module, "ingress_application", lambda _config, _dir, told: told)
    monkeypatch.setattr(change_module, "cause", lambda application: application.message)
    return fake


def changed(new: ClusterConfig, tmp_path: Path, changer: Changer | None = None, running: Running = RUNNING) -> Running:
    changer = changer or Changer(OLD, tmp_path, lambda: None)
    return changer.change(running, new, {}, 5.0, lambda _: None)


def test_what_is_live_only_tells_the_ingress(serve: FakeServe, tmp_path: Path) -> None:
    new = config({"a": MODEL}, routing={"switch_margin": 0.3})
    then = changed(new, tmp_path)
    assert serve.log == ["run ingress"]
    assert then == Running(new, {"a": "model-a"})
    assert serve.applications["ingress"]["applications"] == {"a": "model-a"}
    assert ClusterConfig.model_validate(serve.applications["ingress"]["config"]) == new


def test_new_before_old_and_every_generation_has_a_name_of_its_own(serve: FakeServe, tmp_path: Path) -> None:
    changer = Changer(OLD, tmp_path, lambda: None)
    then = changed(config({"a": MODEL | {"engine": {"max_num_seqs": 3}}}), tmp_path, changer)
    assert serve.log == ["run model-a~2", "run ingress", "delete model-a"]
    serve.log.clear()
    again = changed(OLD, tmp_path, changer, then)
    assert again.applications == {"a": "model-a~3"}
    assert serve.log == ["run model-a~3", "run ingress", "delete model-a~2"]


def test_models_come_and_go_and_are_scaled_in_place(serve: FakeServe, tmp_path: Path) -> None:
    then = changed(config({"a": MODEL | {"replicas": {"min": 2, "max": 2}}, "b": OTHER}), tmp_path)
    assert serve.log == ["run model-b", "run ingress", "run model-a"]
    serve.log.clear()
    changed(OLD, tmp_path, None, then)
    assert serve.log == ["run ingress", "run model-a", "delete model-b"]


def test_what_does_not_load_is_taken_away_and_nothing_else_has_happened(serve: FakeServe, tmp_path: Path) -> None:
    serve.failing = {"model-c"}
    with pytest.raises(ChangeError, match="c: no room"):
        changed(config({"a": MODEL, "b": OTHER, "c": OTHER}), tmp_path)
    assert serve.log == ["run model-b", "run model-c", "delete model-b", "delete model-c"]
    assert set(serve.applications) == {"model-a", "ingress"}


def test_an_ingress_that_does_not_follow_is_told_the_old_config_again(serve: FakeServe, tmp_path: Path) -> None:
    serve.failing = {"ingress"}
    with pytest.raises(ChangeError, match="the ingress: no room"):
        changed(config({"a": MODEL, "b": OTHER}), tmp_path)
    assert serve.log[:2] == ["run model-b", "run ingress"]
    assert serve.log[2] == "run ingress"
    assert "delete model-b" in serve.log
    assert ClusterConfig.model_validate(serve.applications["ingress"]["config"]) == OLD


def test_what_cannot_be_scaled_brings_all_back(serve: FakeServe, tmp_path: Path) -> None:
    serve.refused = {"model-a"}
    with pytest.raises(RuntimeError, match="controller is away"):
        changed(config({"a": MODEL | {"replicas": {"min": 2, "max": 2}}, "b": OTHER}), tmp_path)
    assert serve.log == ["run model-b", "run ingress", "run model-a", "run ingress", "run model-a", "delete model-b"]
    assert ClusterConfig.model_validate(serve.applications["ingress"]["config"]) == OLD


def test_what_needs_a_restart_is_refused(serve: FakeServe, tmp_path: Path) -> None:
    with pytest.raises(ChangeError, match=r"ingress\.port: only"):
        changed(config({"a": MODEL}, ingress={"port": 9000}), tmp_path)
    assert serve.log == []
