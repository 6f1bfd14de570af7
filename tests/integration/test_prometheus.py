"""A real Prometheus scrapes a real cluster under load, and every query that is shipped is put to it.

The scrape config, the rules and the dashboards are those that operators apply; only target, key and pace are the test's.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deployments.dashboards.catalog import DASHBOARDS
from deployments.dashboards.grafana_json import to_json
from tests.clusters import UP_TIMEOUT_S, RunningCluster, simulated_config, start_cluster, stop_cluster
from tests.faults.load import CHAT
from tests.integration.access_keys import add_key
from tests.integration.prometheus_server import SHIPPED, Prometheus, running_prometheus, shipped_config

pytestmark = pytest.mark.timeout(UP_TIMEOUT_S + 120)
SCRAPE_S = 1
LOAD_S = 20
WINDOW_S = 90
"""Queries look so far back: at all of the load."""

ASKED = [{"role": "user", "content": "Tell me something of the capital of France."}]
# What a healthy cluster on simulated engines does not tell of, and why.
WITHOUT_DATA = {
    "pointsman_admission_waiting": "no request waits for a model at this load",
    "pointsman_cost_total": "no external model is paid",
    "pointsman_engine_deaths_total": "no engine dies",
    "pointsman_expert_pool_changes_total": "pools have one replica, and no more",
    "pointsman_records_dropped_total": "no record is lost",
    "pointsman_retries_total": "no replica is lost",
    "pointsman_kv_evictions_total": "the KV pool is never full, so no block has an age when it is used anew",
}


def config() -> dict[str, Any]:
    """A model that is unsure, one that is surer, and a sparse one with pools; keys are asked for."""
    made: dict[str, Any] = simulated_config("dense", "mini", "moe")
    models = made["models"]
    models["dense"]["engine"]["simulated"] = {"confidence": 0.4}
    models["dense"]["precision"] = {"kv_quality": {"fp8": {"agreement": 1.0, "kl": 0.0, "consistency": 1.0}}}
    models["moe"] |= {"kind": "sparse", "pools": {"count": 2, "max": 1, "cpus": 0.1}}
    models["moe"]["engine"]["simulated"] = {
        "decode_step_base_s": 0.005,
        "experts": {"layers": 4, "experts": 8, "top_k": 2},
    }
    made["routing"] = {"code_role": "strong", "feedback": {"enabled": True, "escalate_to": ["role_mini"]}}
    made["contracts"] = {
        "strong": {"max_prompt_tokens": 1024, "max_completion_tokens": 512, "latency_target_s": 0.001},
    }
    return made | {"keys": {"required": True}, "precision": {"dwell_s": 1, "window_s": 1}}


@dataclass(frozen=True)
class Scraped:
    """A cluster that had load, and the Prometheus that saw it."""

    cluster: RunningCluster
    prometheus: Prometheus


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    from tests.integration.cluster_processes import unused_port

    cluster = start_cluster(config(), tmp_path_factory.mktemp("scraped") / "state", unused_port())
    try:
        key = add_key(cluster, "prometheus").key
        folder: Path = tmp_path_factory.mktemp("prometheus")
        with running_prometheus(shipped_config(folder, cluster.url.removeprefix("http://"), key, SCRAPE_S)) as server:
            put_under_load(cluster, key)
            # The rules see the last of it.
            time.sleep(3 * SCRAPE_S)
            yield Scraped(cluster, server)
    finally:
        stop_cluster(cluster.env)


def put_under_load(cluster: RunningCluster, key: str) -> None:
    """A little of everything, for `LOAD_S` seconds, while a level of the precision ladder comes and goes."""
    until = time.monotonic() + LOAD_S
    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(send, cluster, key, until, number) for number in range(4)]
        for step in ("pin dense fp8_kv", "release dense"):
            done = cluster.pointsman("precision", *step.split())
            assert done.returncode == 0, done.stderr
            time.sleep(3)
        for worker in workers:
            worker.result()


def send(cluster: RunningCluster, key: str, until: float, number: int) -> None:
    """Requests one after another: routed and named, streamed and whole, good and bad, and some that nobody waits for."""
    with cluster.client(key=key) as client:
        while time.monotonic() < until:
            for model in ("auto", "moe", "strong"):
                client.post(CHAT, json=body(model, 8)).raise_for_status()
                stream(client, body(model, 8, stream=True))
            assert client.post(CHAT, content=b"{").status_code == 400
            if number == 0:
                stream(client, body("moe", 200, stream=True), lines=1)
                time.sleep(0.2)


def body(model: str, max_tokens: int, **more: Any) -> dict[str, Any]:
    """A request that leaves its sampling open, so that a level may change it."""
    return {"model": model, "messages": ASKED, "max_tokens": max_tokens, **more}


def stream(client: httpx.Client, asked: dict[str, Any], lines: int | None = None) -> None:
    """Read a stream, or the first `lines` of it and go."""
    with client.stream("POST", CHAT, json=asked) as answer:
        assert answer.status_code == 200
        for count, _ in enumerate(answer.iter_lines(), 1):
            if count == lines:
                return


def shipped_rules(kind: str) -> dict[str, str]:
    """Expressions of the rules by their names; `kind` is `record` or `alert`."""
    found = {}
    for path in sorted((SHIPPED / "rules").glob("*.yaml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            found |= {rule[kind]: rule["expr"] for rule in group["rules"] if kind in rule}
    return found


def dashboard_queries() -> list[tuple[str, str]]:
    """Where each query is, and its expression with values in place of Grafana's variables."""
    found = []
    for dashboard in DASHBOARDS:
        made = to_json(dashboard)
        one_model = any(one["name"] == "model" and not one["multi"] for one in made["templating"]["list"][2:])
        model = "moe" if one_model else ".*"
        queries = [(panel["title"], target["expr"]) for panel in made["panels"] for target in panel.get("targets", ())]
        queries += [(note["name"], note["expr"]) for note in made["annotations"]["list"]]
        for title, expr in queries:
            filled = expr.replace("$__rate_interval", "20s").replace("$model", model).replace("$layer", "0")
            assert "$" not in filled, f"{title}: a variable that is none: {filled}"
            found.append((f"{dashboard.title}: {title}", filled))
    return found


def metrics_in(expr: str) -> set[str]:
    """Names of series in an expression."""
    without_texts = re.sub(r'"[^"]*"', '""', expr)
    return set(re.findall(r"\b(?:\w+:)?pointsman[\w:]*\b", without_texts))


def excused(expr: str) -> bool:
    return bool(metrics_in(expr) & WITHOUT_DATA.keys()) or expr.startswith("ALERTS{")


def has_data(series: list[dict[str, Any]]) -> bool:
    return any(not math.isnan(float(value)) for one in series for _, value in one["values"])


def test_the_cluster_is_scraped_with_its_key_alone(scraped: Scraped) -> None:
    (target,) = scraped.prometheus.targets()
    assert target["health"] == "up", target["lastError"]
    with scraped.cluster.client() as client:
        assert client.get("/metrics").status_code == 401


def test_every_rule_evaluates_and_none_is_in_error(scraped: Scraped) -> None:
    groups = scraped.prometheus.ask("rules")["groups"]
    rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert rules.keys() == shipped_rules("record").keys() | shipped_rules("alert").keys()
    assert {name: rule["lastError"] for name, rule in rules.items() if rule["health"] != "ok"} == {}


def test_every_recording_rule_has_data(scraped: Scraped) -> None:
    empty = [name for name in shipped_rules("record") if not has_data(scraped.prometheus.range(name, WINDOW_S, 2))]
    assert empty == []


def test_every_alert_reads_what_is_there(scraped: Scraped) -> None:
    told = set(scraped.prometheus.ask("label/__name__/values"))
    for name, expr in shipped_rules("alert").items():
        scraped.prometheus.query(expr)
        missing = {metric for metric in metrics_in(expr) if metric not in told} - WITHOUT_DATA.keys()
        assert missing == set(), f"{name} reads what nobody tells: {missing}"


def test_every_query_of_every_dashboard_has_data(scraped: Scraped) -> None:
    queries = dashboard_queries()
    assert len(queries) > 80
    empty = [
        f"{where}: {expr}"
        for where, expr in queries
        if not has_data(scraped.prometheus.range(expr, WINDOW_S, 2)) and not excused(expr)
    ]
    assert empty == []


def test_no_exception_is_there_in_vain(scraped: Scraped) -> None:
    asked = {metric for _, expr in dashboard_queries() for metric in metrics_in(expr)}
    assert WITHOUT_DATA.keys() <= asked
    alive = [name for name in WITHOUT_DATA if has_data(scraped.prometheus.range(f"{name} > 0", WINDOW_S, 2))]
    assert alive == []


def test_every_variable_has_values(scraped: Scraped) -> None:
    for dashboard in DASHBOARDS:
        for variable in dashboard.variables:
            values = scraped.prometheus.ask(f"label/{variable.label}/values", **{"match[]": variable.metric})
            assert values, f"{dashboard.title}: {variable.name}"


def test_a_latency_leads_to_the_trace_of_a_request(scraped: Scraped) -> None:
    now = time.time()
    found = scraped.prometheus.ask(
        "query_exemplars", query="pointsman_request_seconds_bucket", start=now - WINDOW_S * 2, end=now
    )
    traces = {one["labels"]["trace_id"] for series in found for one in series["exemplars"]}
    assert traces
    done = scraped.cluster.pointsman("trace", min(traces))
    assert done.returncode == 0 and "chat" in done.stdout, done.stderr
