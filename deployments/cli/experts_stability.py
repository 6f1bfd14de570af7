"""Asks near-identical prompts of a running cluster, and compares where their tokens went."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

import msgspec

from cluster.experts.load import ExpertLog, ExpertShape
from cluster.experts.stability import Stability, compare, perturbations
from deployments.cli import output
from deployments.cli.answer import PATH
from deployments.cli.errors import CliError, ExitCode
from deployments.cli.experts_views import fetch
from deployments.cli.progress import Waiting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deployments.cli.api import Api
    from deployments.cli.experts_views import ExpertsView

DEFAULT_PROMPT: Final = "Write a short function that returns the largest of three numbers, and say how it works."
TIMEOUT_S: Final = 300.0
AGAIN: Final = "the same again"
"""Name of the prompt that is asked twice: what changes there is not the prompt's doing."""
TOP: Final = 2
"""The most used experts of a request that are compared."""
_REPLICA_LETTERS: Final = 6


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked."""

    model: str | None
    prompt: str
    variants: int
    max_tokens: int
    seed: int


class _Log(msgspec.Struct, frozen=True):
    tokens: tuple[int, ...]
    experts: list[list[list[int]]]
    left_out: int = 0


class _Experts(msgspec.Struct, frozen=True):
    layers: int = 0
    experts: int = 0
    top_k: int = 0
    top: tuple[tuple[int, int, float], ...] = ()
    logs: tuple[_Log, ...] = ()
    unavailable: str | None = None


class _Told(msgspec.Struct, frozen=True):
    model: str
    replica: str | None = None
    experts: _Experts = _Experts()


class _Body(msgspec.Struct, frozen=True):
    pointsman: _Told


@dataclass(frozen=True, slots=True)
class Answered:
    """Who answered a prompt, and where its tokens went."""

    model: str
    replica: str
    shape: ExpertShape
    log: ExpertLog | None
    """None: the answer does not tell."""
    top: frozenset[tuple[int, int]]
    unavailable: str | None


@dataclass(frozen=True, slots=True)
class Compared:
    """One variant against the prompt as it was given."""

    name: str
    model: str
    replica: str
    stability: Stability | None
    """None: another model answered, or one that does not tell."""
    model_changed: bool
    replica_changed: bool
    top_changed: bool


def run(api: Api, plan: Plan, *, as_json: bool) -> None:
    """Ask, compare and show. Raises `CliError`."""
    model = _model(api, plan.model)
    with Waiting(f"asking {model}") as waiting:
        first = _ask(api, model, plan.prompt, plan.max_tokens)
        if first.log is None:
            raise CliError(f"{first.model} does not tell which experts its tokens went to: {first.unavailable}")
        compared = []
        for name, text in ((AGAIN, plan.prompt), *_variants(plan)):
            waiting.part(name, "asking")
            compared.append(_compared(name, first, _ask(api, model, text, plan.max_tokens)))
            waiting.done(name, "answered")
    if as_json:
        output.print_json(_as_json(plan, first, compared))
    else:
        _show(first, compared)


def _model(api: Api, wanted: str | None) -> str:
    """Who is asked. Raises `CliError` if experts cannot be listed, or it is not clear of which model."""
    view = fetch(api)
    if not view.log_tokens:
        raise CliError(
            "the log of experts is turned off (experts.log_tokens: 0)",
            "Set it to the tokens of a sequence that may be listed, for example 512, with `pointsman config apply`.",
            ExitCode.REFUSED,
        )
    return wanted or _only(view)


def _only(view: ExpertsView) -> str:
    if len(view.models) > 1:
        raise CliError("several models are sparse", f"Name one with --model: {', '.join(view.models)}.", ExitCode.USAGE)
    return next(iter(view.models))


def _variants(plan: Plan) -> list[tuple[str, str]]:
    """As many different ones as are wanted and can be made; further seeds change other words and gaps."""
    made: dict[str, str] = {}
    for seed in range(plan.seed, plan.seed + plan.variants):
        for name, text in perturbations(plan.prompt, seed):
            made.setdefault(text, name)
    return [(name, text) for text, name in made.items()][: plan.variants]


def _ask(api: Api, model: str, prompt: str, max_tokens: int) -> Answered:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "pointsman": {"experts": True},
    }
    reply = api.post(PATH, body, TIMEOUT_S)
    try:
        data = reply.body.read()
    except OSError as error:
        raise CliError(f"the connection broke in the middle of the answer ({type(error).__name__})") from None
    finally:
        reply.body.close()
    if reply.status != 200:
        raise api.refusal(reply.status, data)
    try:
        told = msgspec.json.decode(data, type=_Body).pointsman
    except msgspec.MsgspecError as error:
        raise CliError(f"the answer does not say where it came from: {error}") from None
    return _answered(told)


def _answered(told: _Told) -> Answered:
    import numpy as np

    experts = told.experts
    log = None
    if experts.logs:
        first = experts.logs[0]
        log = ExpertLog(first.tokens, np.array(first.experts, "<u2").tobytes(), first.left_out)
    return Answered(
        model=told.model,
        replica=told.replica or "",
        shape=ExpertShape(experts.layers, experts.experts, experts.top_k),
        log=log,
        top=frozenset((layer, expert) for layer, expert, _ in experts.top[:TOP]),
        unavailable=experts.unavailable or "it told nothing of this request",
    )


def _compared(name: str, first: Answered, other: Answered) -> Compared:
    stability = None
    if first.log is not None and other.log is not None and first.shape == other.shape and first.model == other.model:
        stability = compare(first.log, other.log, first.shape)
    return Compared(
        name=name,
        model=other.model,
        replica=other.replica,
        stability=stability,
        model_changed=other.model != first.model,
        replica_changed=other.replica != first.replica,
        top_changed=other.top != first.top,
    )


def _show(first: Answered, compared: Sequence[Compared]) -> None:
    numbers = ("score", "changed", "tokens compared")
    table = output.table("variant", *numbers, "first change", "model", "replica", "top experts", right=numbers)
    for one in compared:
        found = one.stability
        table.add_row(
            one.name,
            "" if found is None else f"{found.score:.3f}",
            "" if found is None else f"{found.changed:.1%}",
            "" if found is None else f"{found.aligned} of {found.tokens_a}",
            _first_change(found),
            output.visible(one.model) if one.model_changed else "same",
            output.visible(one.replica[-_REPLICA_LETTERS:]) if one.replica_changed else "same",
            "changed" if one.top_changed else "same",
        )
    output.stdout().print(table)
    output.print_line()
    totals = _totals([one for one in compared if one.name != AGAIN])
    if totals["score"] is not None:
        output.print_line(
            ("score ", "bold"),
            f"{totals['score']:.3f} mean, {totals['lowest']:.3f} lowest; {totals['changed']:.1%} of routes changed",
        )
    count = totals["variants"]
    output.print_line(
        ("thrash ", "bold"),
        f"model {totals['model_changed']} of {count}, replica {totals['replica_changed']} of {count}, "
        f"top {TOP} experts {totals['top_changed']} of {count}",
    )
    if any(one.stability is not None and one.stability.by_position for one in compared):
        output.remark(
            "This engine names no tokens: they were compared by their positions, up to the first difference of the text."
        )
    if first.log is not None and first.log.left_out:
        output.remark(
            f"Only the first {len(first.log.tokens)} tokens of each request were compared (experts.log_tokens)."
        )


def _first_change(found: Stability | None) -> str:
    if found is None:
        return ""
    return "none" if found.first_change is None else "token {} layer {}".format(*found.first_change)


def _totals(compared: Sequence[Compared]) -> dict[str, Any]:
    found = [one.stability for one in compared if one.stability is not None]
    return {
        "variants": len(compared),
        "compared": len(found),
        "score": fmean(one.score for one in found) if found else None,
        "lowest": min((one.score for one in found), default=None),
        "changed": fmean(one.changed for one in found) if found else None,
        "model_changed": sum(one.model_changed for one in compared),
        "replica_changed": sum(one.replica_changed for one in compared),
        "top_changed": sum(one.top_changed for one in compared),
    }


def _as_json(plan: Plan, first: Answered, compared: Sequence[Compared]) -> dict[str, object]:
    rows = []
    for one in compared:
        stability = None
        if one.stability is not None:
            stability = {**asdict(one.stability), "by_layer": one.stability.by_layer.tolist()}
        rows.append({**asdict(one), "stability": stability})
    return {
        "model": first.model,
        "replica": first.replica,
        "shape": asdict(first.shape),
        "seed": plan.seed,
        "again": rows[0],
        "variants": rows[1:],
        "totals": _totals(compared[1:]),
    }
