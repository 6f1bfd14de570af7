"""The policies side by side, against a cluster that answers what it is told."""

from __future__ import annotations

import json

import httpx
from rich.progress import Progress

from loadtests.policies import compare, fresh_items
from loadtests.questions import items


def test_no_question_was_tuned_on() -> None:
    tuned = {item.question for item in items(600, 0)}
    asked = fresh_items(100, seed=1, tuned=600)
    assert len(asked) == 100
    assert tuned.isdisjoint(item.question for item in asked)
    assert asked == fresh_items(100, seed=1, tuned=600)


def answered(request: httpx.Request) -> httpx.Response:
    """The dense model costs 10 tokens; `auto` asks it every second time, after the mini one."""
    body = json.loads(request.content)
    model, trail = body["model"], None
    if model == "auto":
        assert body["pointsman"] == {"min_confidence": 0.3}
        trail = [{"model": "mini", "tokens": 10}]
        if len(body["messages"][0]["content"]) % 2:
            trail.append({"model": "dense", "tokens": 10})
        model = trail[-1]["model"]
    told = {"model": model} | ({} if trail is None else {"trail": trail})
    choice = {"message": {"content": "Paris"}}
    return httpx.Response(200, json={"choices": [choice], "usage": {"total_tokens": 10}, "pointsman": told})


async def test_every_arm_is_asked_everything_and_the_mix_costs_about_as_much_as_auto() -> None:
    asked, pilot = fresh_items(60, 1, 600), items(40, 0)
    async with httpx.AsyncClient(base_url="http://fake", transport=httpx.MockTransport(answered)) as client:
        with Progress(disable=True) as progress:
            found = await compare(client, asked, pilot, ("mini", "dense"), {"min_confidence": 0.3}, 8, 1, progress)
    tokens = {arm: sum(one.strong_tokens for one in results) for arm, results in found.items()}
    assert {len(results) for results in found.values()} == {60}
    assert (tokens["mini"], tokens["dense"]) == (0, 1200)
    assert 0.25 * 1200 < tokens["auto"] < 0.75 * 1200
    assert abs(tokens["mix"] - tokens["auto"]) < 0.25 * 1200
    assert all(one.consistent for one in found["dense"])
    assert sum(one.attempts for one in found["auto"]) > 60
