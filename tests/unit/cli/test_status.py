from __future__ import annotations

import json

import pytest

from deployments.cli import memory
from deployments.cli.snapshot import read_load
from deployments.head.state import ModelState, Phase, write_state

METRICS = """# TYPE pointsman_engine_running gauge
pointsman_engine_running{model="large",replica="a"} 2.0
pointsman_engine_running{model="large",replica="b"} 1.0
pointsman_engine_running{model="small",replica="c"} 0.0
# TYPE pointsman_engine_waiting gauge
pointsman_engine_waiting{model="large",replica="a"} 5.0
# TYPE pointsman_kv_usage_ratio gauge
pointsman_kv_usage_ratio{model="large",replica="a"} 0.25
pointsman_kv_usage_ratio{model="large",replica="b"} 0.75
pointsman_kv_usage_ratio{model="small",replica="c"} 0.0
# TYPE pointsman_kv_blocks gauge
pointsman_kv_blocks{model="large",replica="a"} 64.0
pointsman_kv_blocks{model="small",replica="c"} 0.0
"""


@pytest.fixture
def told(api, running):
    api.json("/readyz", {"models": {"large": {"ready": True, "replicas": 2}, "small": {"ready": True, "replicas": 1}}})
    entries = [
        {"id": "large", "kind": "dense", "roles": ["strong", "facts"], "engine": "vllm"},
        {"id": "small", "kind": "mini", "roles": ["fast"], "engine": "simulated"},
    ]
    api.json("/v1/models", {"object": "list", "data": entries})
    api.json("/metrics", None)
    api.answers["/metrics"].body = METRICS.encode()
    return api


def test_a_table_of_models_and_the_memory(invoke, told, running):
    done = invoke("status")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    large = next(line for line in lines if line.startswith("large"))
    assert large.split() == ["large", "ready", "dense", "strong,", "facts", "vllm", "2", "12", "s", "3", "5", "75%"]
    small = next(line for line in lines if line.startswith("small"))
    assert small.split()[-3:] == ["s", "0", "0"]
    assert f"head process {running.pid}" in done.stdout
    assert "up 90 s" in done.stdout
    assert "(PSS)" in done.stdout
    assert done.stderr == ""


def test_json_for_scripts(invoke, told, running, state_dir):
    (state_dir / "traces.sqlite").write_bytes(b"x" * 100)
    (state_dir / "traces.sqlite-wal").write_bytes(b"x" * 11)
    status = json.loads(invoke("status", "--json").stdout)
    assert status["running"] is True
    assert status["models"]["large"] == {
        "phase": "ready",
        "message": "",
        "kind": "dense",
        "roles": ["strong", "facts"],
        "engine": "vllm",
        "replicas": 2,
        "ready_after_s": 12.5,
        "running": 3,
        "waiting": 5,
        "kv_usage": 0.75,
    }
    assert status["models"]["small"]["kv_usage"] is None
    assert status["trace_store_bytes"] == 111
    (head,) = status["memory"]["groups"]
    assert head["group"] == "head"
    assert head["pss_bytes"] == status["memory"]["pss_bytes"] > 0


def test_an_ingress_that_does_not_answer_is_named(invoke, running, state_dir, free_port):
    silent = type(running)(**{name: getattr(running, name) for name in running.__struct_fields__} | {"port": free_port})
    write_state(state_dir, silent)
    done = invoke("status")
    assert done.exit_code == 0
    assert "does not answer" in done.stderr
    assert "large" in done.stdout


def test_without_a_key_the_rest_is_told(invoke, told):
    told.json("/v1/models", {"error": {"message": "A key is needed."}}, 401)
    done = invoke("status")
    assert done.exit_code == 0
    assert "A key is needed." in done.stderr
    assert "POINTSMAN_API_KEY" in done.stderr


def test_a_failed_model_says_why(invoke, told, running, state_dir):
    fields = {name: getattr(running, name) for name in running.__struct_fields__}
    fields["models"] = {"large": ModelState(Phase.FAILED, "EngineStartError: no \x1b[2Jmemory")}
    fields["phase"] = Phase.DEGRADED
    write_state(state_dir, type(running)(**fields))
    done = invoke("status")
    assert "large: EngineStartError: no \N{REPLACEMENT CHARACTER}[2Jmemory" in done.stdout


def test_no_cluster(invoke):
    done = invoke("status", "--json")
    assert done.exit_code == 3
    assert json.loads(done.stdout)["running"] is False


def test_load_is_added_up_over_replicas():
    load = read_load(METRICS)
    assert (load["large"].running, load["large"].waiting, load["large"].kv_usage) == (3, 5, 0.75)
    assert load["small"].kv_usage is None
    assert read_load("") == {}


def test_processes_are_grouped_by_what_they_are_for(monkeypatch):
    titles = {
        1: "python -m deployments.head",
        10: "python -m deployments.head.guard",
        2: "raylet --port 1",
        3: "ray::ServeController.run_control_loop",
        4: "ray::ServeReplica:ingress:Ingress.handle_request",
        5: "ray::ServeReplica:model-large:ModelReplica",
        6: "VLLM::EngineCore",
        7: "worker of the core",
        8: "ray::ServeReplica:model-small~2:ModelReplica",
        9: "resource tracker of the ingress",
    }
    parents = {1: 0, 10: 1, 2: 1, 3: 2, 4: 2, 5: 2, 6: 5, 7: 6, 8: 2, 9: 4}
    monkeypatch.setattr(memory, "members_of", lambda _cluster, head: tuple(pid for pid in titles if pid != head))
    monkeypatch.setattr(memory, "title_of", titles.__getitem__)
    monkeypatch.setattr(memory, "parent_of", parents.get)
    monkeypatch.setattr(memory, "proportional_memory", lambda pids: 10 * len(list(pids)))
    groups = memory.measure("c", 1)
    assert [(group.name, group.model, group.pids, group.pss_bytes) for group in groups] == [
        ("head", None, (1, 10), 20),
        ("ray", None, (2, 3), 20),
        ("ingress", None, (4, 9), 20),
        ("replicas", "large", (5,), 10),
        ("replicas", "small", (8,), 10),
        ("engines", "large", (6, 7), 20),
    ]
