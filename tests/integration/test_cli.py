"""The commands that a user types, against real clusters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from cluster.telemetry import metric_table
from deployments.head.state import read_state
from deployments.processes import process_state, processes_of
from tests.clusters import (
    ROOT,
    RunningCluster,
    cluster_environment,
    run_pointsman,
    simulated_config,
    start_cluster,
    stop_cluster,
)

GONE = {"Z", "X", None}
MODELS = ("dense", "sparse", "mini", "encoder")
GIB = 2**30


def answer(cluster: RunningCluster, *arguments: str) -> dict[str, object]:
    done = cluster.pointsman("chat", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result


def test_a_question_its_answer_and_its_trace(running_cluster):
    asked = running_cluster.pointsman("chat", "What is the name of the capital of France?")
    assert asked.returncode == 0, asked.stderr
    assert "Paris" in asked.stdout
    assert "why: " in asked.stderr
    trace_id = asked.stderr.partition("pointsman trace ")[2].split()[0]
    drawn = running_cluster.pointsman("trace", trace_id)
    assert drawn.returncode == 0, drawn.stderr
    for span in ("chat", "route", "replica", "llm_request"):
        assert span in drawn.stdout
    spans = json.loads(running_cluster.pointsman("trace", trace_id, "--json").stdout)["spans"]
    assert sum(span["parent_id"] is None for span in spans) == 1
    known = {span["span_id"] for span in spans}
    assert all(span["parent_id"] in known for span in spans if span["parent_id"] is not None)


@pytest.mark.parametrize("more", [(), ("--no-stream",)], ids=["stream", "whole"])
def test_every_chat_model_answers_under_its_name(running_cluster, more):
    for model in ("dense", "sparse", "mini"):
        told = answer(running_cluster, "Say hello.", "--model", model, "--max-tokens", "8", *more)
        assert told["text"]
        assert (told["model"], told["engine"]) == (model, "vllm")
        assert 1 <= told["completion_tokens"] <= 8
        assert len(told["trace_id"]) == 32


def test_what_the_cluster_refuses_is_said_in_its_words(running_cluster):
    for model, words in (("nobody", "No such model"), ("encoder", "does not chat")):
        done = running_cluster.pointsman("chat", "hi", "--model", model)
        assert done.returncode == 1
        assert words in done.stderr
        assert done.stdout == ""


def test_status_knows_every_model_and_where_the_memory_is(running_cluster):
    done = running_cluster.pointsman("status")
    assert done.returncode == 0, done.stderr
    assert running_cluster.url in done.stdout
    status = json.loads(running_cluster.pointsman("status", "--json").stdout)
    assert status["answering"] is True
    assert status["remarks"] == []
    assert set(status["models"]) == set(MODELS)
    for name, model in status["models"].items():
        assert name in done.stdout
        assert (model["phase"], model["replicas"]) == ("ready", 1)
        assert (model["running"], model["waiting"]) == (0, 0)
    assert status["models"]["dense"]["kv_usage"] == 0
    assert status["models"]["encoder"]["kv_usage"] is None
    groups = {(group["group"], group["model"]): group for group in status["memory"]["groups"]}
    for expected in (("head", None), ("ray", None), ("ingress", None), ("engines", "dense"), ("replicas", "encoder")):
        assert groups[expected]["pss_bytes"] > 0
    assert status["memory"]["pss_bytes"] < 16 * GIB
    counted = {pid for group in status["memory"]["groups"] for pid in group["pids"]}
    assert {status["pid"], *processes_of(status["cluster_id"])} <= counted | {os.getpid()}


def test_the_models_of_the_running_cluster_are_built(running_cluster):
    listed = json.loads(running_cluster.pointsman("models", "--json").stdout)
    assert listed["config"] == str(running_cluster.config_path)
    assert {model["name"]: model["files"] for model in listed["models"]} == dict.fromkeys(MODELS, "built")
    verified = running_cluster.pointsman("models", "verify", "encoder")
    assert verified.returncode == 0, verified.stderr
    assert "intact" in verified.stdout


def test_up_again_joins_and_another_config_is_refused(running_cluster, tmp_path):
    again = running_cluster.pointsman("up", "--config", str(running_cluster.config_path))
    assert again.returncode == 0, again.stderr
    assert "Already running and ready" in again.stdout
    config = yaml.safe_load(running_cluster.config_path.read_text())
    config["telemetry"] = {"log_level": "debug"}
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(config))
    refused = running_cluster.pointsman("up", "--config", str(other))
    assert refused.returncode == 3
    assert "another cluster already runs" in refused.stderr


def test_a_port_in_use_is_named_with_its_holder(running_cluster, state_dir):
    env = {**running_cluster.env, "POINTSMAN_STATE_DIR": str(state_dir)}
    refused = run_pointsman("up", "--config", str(running_cluster.config_path), env=env)
    assert refused.returncode == 3
    holder = psutil.Process(int(refused.stderr.partition("held by process ")[2].split()[0]))
    cluster_id = read_state(running_cluster.state_dir).cluster_id
    assert holder.pid in processes_of(cluster_id)
    assert read_state(state_dir) is None


def test_a_key_works_until_it_is_revoked_and_its_use_is_counted(running_cluster):
    made = json.loads(running_cluster.pointsman("keys", "add", "tester", "--json").stdout)
    time.sleep(1.0)
    told = answer(running_cluster, "Say hello.", "--max-tokens", "4", "--key", made["key"])
    assert told["completion_tokens"] == 4
    deadline = time.monotonic() + 10
    while True:
        (use,) = json.loads(running_cluster.pointsman("keys", "usage", made["id"], "--json").stdout)
        if use["completion_tokens"] == 4 or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert (use["requests"], use["completion_tokens"]) == (1, 4)
    assert running_cluster.pointsman("keys", "revoke", made["id"]).returncode == 0
    time.sleep(1.0)
    refused = running_cluster.pointsman("chat", "hi", "--key", made["key"])
    assert refused.returncode == 3
    assert "not valid" in refused.stderr


@pytest.fixture
def small_cluster(state_dir, free_port) -> Iterator[RunningCluster]:
    """A cluster of one simulated model that a test may kill."""
    cluster = start_cluster(simulated_config("alpha"), state_dir, free_port)
    yield cluster
    stop_cluster(cluster.env)


@pytest.mark.timeout(300)
def test_down_cleans_up_after_a_head_that_was_killed(small_cluster):
    state = read_state(small_cluster.state_dir)
    os.kill(state.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while process_state(state.pid) not in GONE and time.monotonic() < deadline:
        time.sleep(0.05)
    assert small_cluster.pointsman("status").returncode == 3
    done = small_cluster.pointsman("down")
    assert done.returncode == 0, done.stderr
    assert processes_of(state.cluster_id) == ()
    assert small_cluster.pointsman("down", "--json").returncode == 0
    assert read_state(small_cluster.state_dir) is None


@pytest.mark.timeout(300)
def test_an_interrupted_start_leaves_nothing(state_dir, free_port):
    config = state_dir / "config.yaml"
    config.write_text(yaml.safe_dump(simulated_config("alpha") | {"ingress": {"port": free_port}}))
    up = subprocess.Popen(
        [sys.executable, "-m", "deployments.cli", "up", "--config", str(config)],
        env=cluster_environment(state_dir, free_port),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with up:
        cluster_id = when_it_has_processes(state_dir)
        up.send_signal(signal.SIGINT)
        output, _ = up.communicate(timeout=120)
    assert up.returncode == 130, output
    assert processes_of(cluster_id) == ()
    assert read_state(state_dir) is None


def when_it_has_processes(state_dir: Path) -> str:
    """The cluster's id, once Ray has begun to start."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        state = read_state(state_dir)
        if state is not None and len(processes_of(state.cluster_id)) >= 3:
            return state.cluster_id
        time.sleep(0.05)
    raise TimeoutError("the cluster did not begin to start")


def most_at_once(url: str, asking: int) -> int:
    """The most sequences that ran at once while `asking` callers waited for long answers, all of which came."""
    body = {
        "model": "mini",
        "messages": [{"role": "user", "content": "Tell a long story."}],
        "max_tokens": 96,
        "ignore_eos": True,
    }
    seen = [0]
    with (
        httpx.Client(base_url=url, timeout=120, trust_env=False) as client,
        ThreadPoolExecutor(asking) as callers,
    ):
        answers = [callers.submit(client.post, "/v1/chat/completions", json=body) for _ in range(asking)]
        while not all(answer.done() for answer in answers):
            running = f"{metric_table.ENGINE_RUNNING.name}{{"
            lines = client.get("/metrics").text.splitlines()
            seen += [int(float(line.rpartition(" ")[2])) for line in lines if line.startswith(running)]
            time.sleep(0.05)
        assert [answer.result().status_code for answer in answers] == [200] * asking
    return max(seen)


@pytest.mark.timeout(400)
def test_one_model_with_a_window_in_one_command(state_dir, free_port):
    env = cluster_environment(state_dir, free_port)
    options = ["--kv-window", "256", "--batch-size", "2", "--port", str(free_port)]
    started = run_pointsman("serve", "embedded:mini", *options, env=env, timeout_s=300)
    try:
        assert started.returncode == 0, started.stderr
        assert "Ready in" in started.stdout
        turns = [{"role": "system", "content": "You are brief."}]
        for number in range(12):
            turns.append({"role": "user", "content": f"Question {number}: name a colour and say why you like it."})
            turns.append({"role": "assistant", "content": "Blue, because the sky and the sea are blue."})
        turns.append({"role": "user", "content": "And now?"})
        body = {"model": "mini", "messages": turns, "max_tokens": 16}
        reply = httpx.post(f"http://127.0.0.1:{free_port}/v1/chat/completions", json=body, timeout=60, trust_env=False)
        assert reply.status_code == 200, reply.text
        told = reply.json()
        assert told["usage"]["prompt_tokens"] + 16 <= 256
        assert told["pointsman"]["truncated_turns"] > 0
        assert reply.headers["x-pointsman-truncated-turns"] == str(told["pointsman"]["truncated_turns"])
        asked = run_pointsman("chat", "--json", "Count from one to a thousand, in words.", env=env)
        endless = json.loads(asked.stdout)
        assert endless["prompt_tokens"] + endless["completion_tokens"] <= 256
        assert most_at_once(f"http://127.0.0.1:{free_port}", asking=6) == 2
        status = json.loads(run_pointsman("status", "--json", env=env).stdout)
        assert list(status["models"]) == ["mini"]
    finally:
        cluster_id = state.cluster_id if (state := read_state(state_dir)) is not None else None
        stopped = run_pointsman("down", env=env)
    assert stopped.returncode == 0, stopped.stderr
    assert cluster_id is not None
    assert processes_of(cluster_id) == ()
