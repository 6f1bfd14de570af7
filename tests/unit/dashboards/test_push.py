"""Dashboards brought to a Grafana that speaks its HTTP API, through the command that operators type."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator

import pytest
from typer.testing import CliRunner, Result

from deployments.cli.app import app
from deployments.dashboards.catalog import DASHBOARDS
from deployments.dashboards.grafana_json import to_json
from deployments.dashboards.push import AddressError, checked_address
from tests.integration.grafana_stand_in import TOKEN, VIEWER, GrafanaStandIn, grafana_stand_in

OVERVIEW = "pointsman-overview"
Push = Callable[..., Result]


@pytest.fixture
def grafana() -> Iterator[GrafanaStandIn]:
    with grafana_stand_in() as running:
        yield running


@pytest.fixture
def push(grafana: GrafanaStandIn, monkeypatch: pytest.MonkeyPatch) -> Push:
    monkeypatch.setenv("GRAFANA_TOKEN", TOKEN)
    monkeypatch.delenv("POINTSMAN_DEBUG", raising=False)
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*options: str, url: str = grafana.url) -> Result:
        return CliRunner().invoke(app, ["dashboards", "push", "--grafana-url", url, *options])

    return run


def outcomes(done: Result) -> dict[str, str]:
    assert done.exit_code == 0, done.output
    return {one["uid"]: one["outcome"] for one in json.loads(done.stdout)}


def writes(grafana: GrafanaStandIn) -> list[str]:
    return [path for method, path in grafana.asked if method != "GET"]


def test_all_are_made_once_and_then_left_alone(grafana, push) -> None:
    uids = {dashboard.uid for dashboard in DASHBOARDS}
    assert outcomes(push("--json")) == dict.fromkeys(uids, "created")
    assert writes(grafana) == ["/folders", *["/dashboards/db"] * len(uids)]
    for dashboard in DASHBOARDS:
        there = grafana.dashboards[dashboard.uid]
        assert there["dashboard"].items() >= to_json(dashboard).items()
        assert there["meta"]["folderUid"] == "pointsman"
    grafana.asked.clear()
    assert outcomes(push("--json")) == dict.fromkeys(uids, "unchanged")
    assert writes(grafana) == []


def test_what_somebody_changed_is_set_right_alone(grafana, push) -> None:
    push()
    grafana.dashboards[OVERVIEW]["dashboard"]["title"] = "Mine"
    grafana.dashboards["pointsman-kv"]["dashboard"]["panels"].append({"id": 99, "type": "text"})
    grafana.dashboards["pointsman-requests"]["meta"]["folderUid"] = "elsewhere"
    done = push()
    assert [line.rpartition(": ")[2] for line in done.stdout.splitlines()] == [
        "changed",
        "unchanged",
        "changed",
        "unchanged",
        "unchanged",
        "changed",
    ]
    assert grafana.dashboards[OVERVIEW]["dashboard"]["version"] == 2
    assert set(outcomes(push("--json")).values()) == {"unchanged"}


def test_a_dry_run_shows_the_difference_and_changes_nothing(grafana, push) -> None:
    fresh = push("--dry-run")
    assert fresh.exit_code == 0 and writes(grafana) == []
    assert "--- /dev/null" in fresh.stdout and "would be created" in fresh.stderr
    push()
    grafana.dashboards[OVERVIEW]["dashboard"]["title"] = "Mine"
    grafana.asked.clear()
    done = push("--dry-run")
    assert writes(grafana) == []
    lines = done.stdout.splitlines()
    assert lines[:2] == [f"--- grafana/{OVERVIEW}", f"+++ pointsman/{OVERVIEW}"]
    assert '-  "title": "Mine",' in lines and '+  "title": "Pointsman: overview",' in lines
    assert [line for line in lines if line.startswith("---")] == lines[:1]
    assert "Pointsman: overview: would be changed" in done.stderr


def test_a_newer_form_of_grafanas_own_is_no_change(grafana, push) -> None:
    grafana.adds |= {"schemaVersion": 42}
    push()
    assert set(outcomes(push("--json")).values()) == {"unchanged"}


def test_a_change_at_the_same_moment_is_not_lost(grafana, push) -> None:
    push()
    grafana.dashboards[OVERVIEW]["dashboard"]["title"] = "Mine"

    def meanwhile(uid: str) -> None:
        grafana.dashboards[uid]["dashboard"]["version"] += 1

    grafana.before_save = meanwhile
    done = push()
    assert done.exit_code == 1
    assert "somebody changed the dashboard Pointsman: overview" in done.stderr and "Push again" in done.stderr
    assert grafana.dashboards[OVERVIEW]["dashboard"]["title"] == "Mine"


def test_another_dashboard_of_the_same_name_is_named(grafana, push) -> None:
    grafana.folders["pointsman"] = {"uid": "pointsman", "title": "Pointsman"}
    grafana.dashboards["other"] = {
        "dashboard": {"title": "Pointsman: overview", "version": 1, "id": 1},
        "meta": {"folderUid": "pointsman"},
    }
    done = push()
    assert done.exit_code == 1
    assert "another dashboard of the name" in done.stderr and "rename" in done.stderr


@pytest.mark.parametrize(
    ("token", "said"), [("wrong", "refuses the token"), (VIEWER, "Give its service account the role Editor")]
)
def test_a_token_that_does_not_do_is_said_and_never_shown(push, monkeypatch, token, said) -> None:
    monkeypatch.setenv("GRAFANA_TOKEN", token)
    done = push()
    assert done.exit_code == 1 and said in done.stderr
    assert token not in done.output.replace("the wrong", "")


@pytest.mark.parametrize("token", [None, " ", "glsa_\nx", "gl\u00e9"])
def test_without_a_token_nothing_is_tried(grafana, push, monkeypatch, token) -> None:
    if token is None:
        monkeypatch.delenv("GRAFANA_TOKEN")
    else:
        monkeypatch.setenv("GRAFANA_TOKEN", token)
    done = push()
    assert done.exit_code == 2 and "GRAFANA_TOKEN" in done.stderr
    assert grafana.asked == []


def test_a_grafana_below_a_path_is_found(monkeypatch, push) -> None:
    with grafana_stand_in("/grafana") as below:
        assert set(outcomes(push("--json", url=below.url)).values()) == {"created"}
        assert set(outcomes(push("--json", url=below.url + "/")).values()) == {"unchanged"}


def test_a_grafana_that_fails_or_is_not_there_is_said(grafana, push) -> None:
    grafana.failing = 500
    done = push()
    assert done.exit_code == 1 and "failed with status 500" in done.stderr and "log" in done.stderr
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        gone = push(url=f"http://127.0.0.1:{nobody.getsockname()[1]}")
    assert gone.exit_code == 1 and "cannot be reached" in gone.stderr and "Traceback" not in gone.output


@pytest.mark.parametrize(
    "url",
    [
        "grafana.example.com",
        "ftp://grafana",
        "http://user:secret@grafana",
        "http://grafana/?a=b",
        "http://grafana:x",
        "",
    ],
)
def test_an_address_that_is_none_is_refused_and_a_password_in_it_not_shown(push, url) -> None:
    with pytest.raises(AddressError):
        checked_address(url)
    done = push(url=url)
    assert done.exit_code == 2 and "secret" not in done.output


def test_who_sends_a_token_unencrypted_is_warned(grafana, push, monkeypatch) -> None:
    monkeypatch.setattr("deployments.dashboards.push.Grafana.push", lambda *_, **__: iter(()))
    assert "unencrypted" in push(url="http://grafana.example.com").stderr
    assert "unencrypted" not in push().stderr
