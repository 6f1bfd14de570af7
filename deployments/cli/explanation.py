"""Asks the cluster for a routing decision and draws it."""

from __future__ import annotations

import json

import msgspec
from rich.table import Table

from deployments.cli import output
from deployments.cli.api import Api, ApiUnreachableError

TIMEOUT_S = 10.0


class Score(msgspec.Struct, frozen=True):
    """One scorer's word on one model."""

    name: str
    value: float
    weight: float
    reason: str


class Candidate(msgspec.Struct, frozen=True):
    """One model that was considered."""

    model: str
    fits: bool
    reason: str
    score: float | None
    scores: tuple[Score, ...]


class SamplingMode(msgspec.Struct, frozen=True):
    """The sampling mode by a rule."""

    mode: str
    rule: str
    strict: bool


class Route(msgspec.Struct, frozen=True):
    """What `POST /v1/route` answers."""

    model: str
    role: str | None
    reason: str
    rule: str
    sampling: SamplingMode | None
    fallbacks: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    signals: dict[str, str]


def ask(api: Api, body: dict[str, object]) -> tuple[Route, object]:
    """The decision, and its JSON as it came. Raises `CliError` with what the cluster says against the request."""
    reply = api.post("/v1/route", body, TIMEOUT_S)
    try:
        data = reply.body.read()
    finally:
        reply.body.close()
    if reply.status != 200:
        raise api.refusal(reply.status, data)
    try:
        return msgspec.json.decode(data, type=Route), json.loads(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ApiUnreachableError(f"{api.url}/v1/route is not answered by Pointsman: {error}") from None


def show(route: Route) -> None:
    """Print the decision, the candidates with their scores, and the signals."""
    output.print_line(("model   ", "dim"), (route.model, "bold"))
    output.print_line(("reason  ", "dim"), route.reason)
    output.print_line(("rule    ", "dim"), route.rule)
    if route.sampling is not None:
        kept = "the caller must keep to it" if route.sampling.strict else "unless the caller sends a temperature"
        output.print_line(("samples ", "dim"), f"{route.sampling.mode} (rule {route.sampling.rule}), {kept}")
    console = output.stdout()
    for table in (_candidates(route), _reasons(route), _signals(route)):
        output.print_line()
        console.print(table)


def _candidates(route: Route) -> Table:
    columns = tuple(dict.fromkeys(score.name for candidate in route.candidates for score in candidate.scores))
    table = output.table("candidate", "score", *columns, "", right=("score", *columns))
    for candidate in route.candidates:
        values = {score.name: f"{score.value:.2f}" for score in candidate.scores}
        style = "bold" if candidate.model == route.model else "" if candidate.fits else "dim"
        total = "" if candidate.score is None else f"{candidate.score:.3f}"
        table.add_row(
            candidate.model, total, *(values.get(name, "") for name in columns), candidate.reason, style=style
        )
    return table


def _reasons(route: Route) -> Table:
    table = output.table("score", "weight", *(candidate.model for candidate in route.candidates), right=("weight",))
    weights = {score.name: score.weight for candidate in route.candidates for score in candidate.scores}
    for name, weight in weights.items():
        reasons = (
            next((score.reason for score in candidate.scores if score.name == name), "")
            for candidate in route.candidates
        )
        table.add_row(name, f"{weight:g}", *reasons)
    return table


def _signals(route: Route) -> Table:
    table = output.table("signal", "value")
    for name, value in route.signals.items():
        table.add_row(name.replace("_", " "), value)
    return table
