"""`pointsman experts`: what it shows of what the cluster tells, and what it says where there is nothing to show."""

from __future__ import annotations

import json

import pytest

from tests.unit.cli.experts_page import hot, model, page, tail

PATH = "/v1/experts"


@pytest.mark.parametrize("command", [("experts",), ("experts", "show")])
def test_map_hot_experts_and_wide_requests_are_shown(invoke, api, running, command):
    told = model(hot=[hot(), hot(1, 3)], tail=tail())
    api.json(PATH, page({"moe": told}, silent={"mute": ["a compiled model"]}))
    done = invoke(*command)
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["0", "···███······", "4.00", "0.00", "1234"] in lines
    assert ["1", "▄▄▄▄▄▄▄▄▄▄▄▄", "1.00", "1.00", "1234"] in lines
    assert "2 layers of 4 experts, 2 for each token  12.3 tokens/s lately  tokens by replica: abc123 777" in done.stdout
    assert ["1", "3", "50.0%", "2.00", "70", "s", "code", "75%,", "not", "known", "25%"] in lines
    assert [
        "0%",
        "to",
        "25%",
        "48",
        "96%",
        "12",
        *["50.0", "ms", "0.50", "s", "12", "s"],
        "50.0",
        "ms",
        "0.50",
        "s",
    ] in lines
    assert ["90%", "to", "100%", "2", "4%", "99", *["50.0", "ms", "0.50", "s", "12", "s"], "rare"] in lines
    assert "25% to 50%" not in done.stdout
    assert "mute does not tell of its experts: a compiled model" in done.stdout


def test_a_long_list_of_hot_experts_is_cut_and_says_so(invoke, api, running):
    api.json(PATH, page({"moe": model(hot=[hot(0, expert) for expert in range(30)])}))
    shown = invoke("experts").stdout
    assert "hot experts: 30" in shown
    assert "and 18 more" in shown


def test_nothing_hot_and_no_tokens_are_said(invoke, api, running):
    api.json(PATH, page({"moe": model(tokens=[0.0, 0.0], tail=None)}))
    shown = invoke("experts").stdout
    assert "no tokens lately" in shown
    assert "No expert is hot: none had 1.5 times the even share for long enough." in shown


def test_many_experts_are_folded_and_said_to_be(invoke, api, running):
    api.json(PATH, page({"moe": model(layers=58, experts=256)}))
    lines = invoke("experts").stdout.splitlines()
    assert all(len(line.rstrip()) <= 120 for line in lines)
    assert "To fit, a cell is the hottest of 4 experts." in lines


def test_a_map_for_each_kind_of_traffic(invoke, api, running):
    kinds = {"code": [[1.0, 0.0, 0.0, 0.0]] * 2, "": [[0.0, 0.0, 0.0, 1.0]] * 2}
    api.json(PATH, page({"moe": model(traffic=kinds)}))
    lines = [line.strip() for line in invoke("experts", "--by", "traffic").stdout.splitlines()]
    code, unknown = lines.index("code"), lines.index("(not known)")
    assert lines[code + 2].split() == ["0", "███·········", "4.00"]
    assert lines[unknown + 2].split() == ["0", "·········███", "4.00"]
    api.json(PATH, page())
    assert "No request has ended yet" in invoke("experts", "--by", "traffic").stdout


def test_one_model_of_several(invoke, api, running):
    api.json(PATH, page({"moe": model(), "other": model()}, silent={"mute": ["a compiled model"]}))
    shown = invoke("experts", "show", "--model", "other").stdout
    assert shown.startswith("other  ")
    assert "moe" not in shown
    told = json.loads(invoke("experts", "--model", "moe", "--json").stdout)
    assert list(told["models"]) == ["moe"]
    assert told["half_life_s"] == 30


@pytest.mark.parametrize(
    ("answer", "options", "status", "words"),
    [
        (page({}), (), 1, "no model of this cluster is sparse"),
        (page({}, silent={"mute": ["a compiled model"]}), (), 1, "mute: a compiled model"),
        (page(silent={"mute": ["a compiled model"]}), ("--model", "mute"), 1, "mute does not tell"),
        (page(), ("--model", "dense"), 2, "Models that tell of their experts: moe"),
        (page(), ("--model", "dense", "--json"), 2, "there is no sparse model dense"),
    ],
)
def test_where_there_is_nothing_to_show(invoke, api, running, answer, options, status, words):
    api.json(PATH, answer)
    done = invoke("experts", *options)
    assert done.exit_code == status
    assert words in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("options", [("--watch",), ("--key", "k"), ("--model", "moe")])
def test_options_before_a_command_are_not_lost_in_silence(invoke, api, running, options, monkeypatch):
    monkeypatch.setenv("POINTSMAN_API_KEY", "from-the-environment")
    done = invoke("experts", *options, "stability")
    assert done.exit_code == 2
    assert "behind it" in done.stderr
    assert api.asked == []
    api.json(PATH, page())
    assert invoke("experts", "show").exit_code == 0
    assert api.asked[0][1]["authorization"] == "Bearer from-the-environment"


def test_without_a_cluster_it_says_how_to_start_one(invoke):
    done = invoke("experts")
    assert done.exit_code == 3
    assert "pointsman up" in done.stderr


def test_watching_goes_on_until_it_is_stopped(invoke, api, running, monkeypatch):
    api.json(PATH, page())
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("deployments.cli.experts_show.time.sleep", sleep)
    done = invoke("experts", "--watch")
    assert done.exit_code == 130
    assert len(api.asked) == 3
    assert "···███······" in done.stdout
