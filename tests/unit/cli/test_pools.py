"""What `pointsman experts` shows of pools of experts."""

from __future__ import annotations

import io
import json

import msgspec
import pytest
from rich.console import Console, Group

from deployments.cli.pools_show import drawn_pools, lines_of
from deployments.cli.pools_views import PoolsTold
from tests.unit.cli.experts_page import model, page
from tests.unit.cli.pools_page import change, pool, told

PATH = "/v1/experts"


def shown(value: dict[str, object], *, width: int = 100, plain: bool = False) -> list[str]:
    """The drawing, line by line."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(Group(*drawn_pools(msgspec.convert(value, PoolsTold), plain=plain)))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_pools_and_their_last_changes_stand_below_the_map(invoke, api, running):
    pools = told(
        pool("hot-0", 2, 2, pairs_per_s=830.0),
        pool("cold-0", 1, 1, pairs_per_s=20.4),
        changes=(change(),),
        moved_pairs=14,
    )
    api.json(PATH, page({"moe": model(pools=pools), "whole": model()}))
    done = invoke("experts", "--model", "moe")
    assert done.exit_code == 0, done.output
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    at = next(number for number, line in enumerate(lines) if line.startswith("pools of experts"))
    assert lines[at : at + 7] == [
        "pools of experts: 2  replicas that answer: 3, weights: 36.0 MiB of 512 MiB, map version 7, 14 experts moved",
        "pool    experts  replicas  pairs/s    of capacity  weights MiB  overhead MiB",
        "hot-0       120       2/2      830  ███████░  83%         24.0          60.0",
        "cold-0      120       1/1       20  ░░░░░░░░   4%         12.0          30.0",
        "",
        "last changes of replicas",
        "12 s ago  hot-0  1 -> 2  hot: 83% of its capacity is used; told trunks after 4.1 s",
    ]
    assert lines.index("No expert is hot: none had 1.5 times the even share for long enough.") > at
    assert "pools of experts" not in invoke("experts", "--model", "whole").stdout


def test_without_unicode_the_bars_are_ascii():
    lines = shown(told(pool("hot-0", 2, 2, pairs_per_s=830.0), changes=(change(),)), plain=True)
    assert lines[2] == "hot-0      120       2/2      830  #######.  83%         24.0          60.0"
    assert all(line.isascii() for line in lines)


def test_nothing_is_cut_on_a_narrow_terminal():
    value = told(
        pool("hot-0", 1, 1, pairs_per_s=700.0, lacks="2359296 bytes to load, 1024 are free"), changes=(change(),)
    )
    lines = shown(value, width=80)
    assert all(len(line) <= 80 for line in lines)
    assert "hot-0      120       1/1      700  ████████ 140%         12.0          30.0" in lines
    assert "hot-0: can have no more replicas now: 2359296 bytes to load, 1024 are free" in lines
    assert "…" not in "".join(lines)


def test_pools_without_replicas_say_why():
    lines = shown(told(pool("parked", 0, 0), pool("leaving", 0, 1), pool("coming", 3, 1), pool("dead", 1, 0)))
    assert lines[0].endswith(", 1 parked")
    assert lines[2].split() == ["parked", "120", "0/0", "0", "parked", "0.0", "0.0"]
    assert lines[5].split() == ["dead", "120", "0/1", "0", "none", "answers", "0.0", "0.0"]
    assert lines[6:] == [
        "leaving: being parked",
        "coming: 2 of its replicas do not answer yet",
        "dead: 1 of its replicas does not answer yet",
        "A parked pool has no replica until a token needs one of its experts.",
    ]


def test_a_parked_pool_that_cannot_be_started_says_so():
    lines = shown(told(pool("cold", 0, 0, lacks="9 bytes to load, 1 are free")))
    assert "cold: can have no more replicas now: 9 bytes to load, 1 are free" in lines


def test_a_capacity_that_is_not_known_yet():
    assert "not known" in shown(told(pool("new", 1, 1, capacity_pairs_per_s=0.0)))[2]


def test_no_pools_and_no_changes():
    assert shown(told()) == ["pools of experts: 0  replicas that answer: 0, weights: 0 B of 512 MiB, map version 7"]


def test_of_hundreds_those_are_shown_that_are_used_most_or_lack_replicas():
    many = [pool(f"p{number}", 1, 1, pairs_per_s=float(number)) for number in range(100)]
    many[3] = pool("p3", 2, 1)
    lines = shown(told(*many, *(pool(f"q{number}", 2, 1) for number in range(9)), changes=(change(),) * 30))
    names = [line.split()[0] for line in lines[2:26]]
    assert names == ["p3", *(f"p{number}" for number in range(86, 100)), *(f"q{number}" for number in range(9))]
    assert lines[26] == "and 85 more"
    assert "and 4 more that lack replicas or are being parked" in lines
    assert sum("12 s ago" in line for line in lines) == 5


def test_changes_are_told_newest_first_and_by_the_clock_of_the_cluster():
    old = change(1, 0, 800.0, 0.3, pool="cold", cause="idle", reason="no token came for 300 s")
    lines = shown(told(pool("cold", 0, 0), changes=(old, change(0, 1, -5.0, None, cause="invoked", reason="2 wait"))))
    assert lines[-2:] == [
        "     0.00 s ago  hot-0  0 -> 1  invoked: 2 wait; trunks not told yet",
        "13 min 20 s ago  cold   1 -> 0  idle: no token came for 300 s; told trunks after 0.30 s",
    ]


def test_what_is_old_is_called_stale():
    lines = shown(told(pool("hot-0", 1, 1), age_s=42.0, stale=True, failed="no answer within 2 s"))
    assert lines[1] == "This is stale, 42 s old: no answer within 2 s."


def test_what_others_wrote_cannot_steer_the_terminal():
    evil = "\x1b]0;owned\x07"
    value = told(
        pool(evil, 1, 1, lacks=evil), changes=(change(pool=evil, cause=evil, reason=evil),), failed=evil, stale=True
    )
    assert "\x1b" not in "".join(shown(value))
    assert "\x1b" not in "".join(shown({"unavailable": evil}))


@pytest.mark.parametrize(
    "value",
    [
        told(),
        told(pool("a", 0, 0)),
        told(pool("a", 1, 0), pool("b", 1, 1), changes=(change(),)),
        {"unavailable": "why"},
    ],
)
def test_the_room_that_is_kept_for_them_is_enough(value):
    assert len(shown(value)) <= lines_of(msgspec.convert(value, PoolsTold)) + 1


def test_pools_of_a_model_that_does_not_tell_of_experts_are_shown_all_the_same(invoke, api, running):
    silent = {"moe": ["no replica has told of its experts yet"], "mute": ["a compiled model"]}
    pools = {"moe": told(pool("a", 0, 0)), "mute": {"unavailable": "the pools have not told how they stand yet"}}
    api.json(PATH, page({}, silent=silent, silent_pools=pools))
    text = invoke("experts").stdout
    assert "moe does not tell of its experts: no replica has told of its experts yet\npools of experts: 1" in text
    assert "stand: the pools have not told how they stand yet." in text
    assert "times the even share" not in text
    one = invoke("experts", "--model", "moe").stdout
    assert "pools of experts: 1" in one
    assert "mute" not in one
    assert list(json.loads(invoke("experts", "--model", "moe", "--json").stdout)["silent_pools"]) == ["moe"]
    # Stability needs experts that are told of.
    assert invoke("experts", "stability").exit_code == 1


def test_json_has_them_as_they_are_told(invoke, api, running):
    value = told(pool("a", 1, 1), changes=(change(),))
    api.json(PATH, page({"moe": model(pools=value), "whole": model(pools=None)}))
    models = json.loads(invoke("experts", "--json").stdout)["models"]
    assert models["moe"]["pools"] == json.loads(json.dumps(value))
    assert models["whole"]["pools"] is None


def test_watching_leaves_room_for_the_pools(invoke, api, running, monkeypatch):
    def stop(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deployments.cli.experts_show.time.sleep", stop)
    monkeypatch.setenv("LINES", "40")
    monkeypatch.setenv("COLUMNS", "100")
    heights = []
    for pools in (None, told(*(pool(f"p{number}", 1, 1) for number in range(10)))):
        api.json(PATH, page({"moe": model(layers=20, pools=pools)}))
        lines = invoke("experts", "--watch").stdout.splitlines()
        heights.append(sum("▄" in line for line in lines) - 1)
    assert heights[1] < heights[0]
