"""What `GET /v1/experts` tells, and which of its models a command is about."""

from __future__ import annotations

import msgspec

from deployments.cli.api import Api
from deployments.cli.errors import CliError, ExitCode
from deployments.cli.pools_views import PoolsTold

PATH = "/v1/experts"


class Shape(msgspec.Struct, frozen=True):
    """What a model has of experts."""

    layers: int
    experts: int
    top_k: int


class Part(msgspec.Struct, frozen=True):
    """A kind of traffic, and its share of something, 0 to 1."""

    name: str
    share: float


class Hot(msgspec.Struct, frozen=True):
    """One expert that is hot."""

    layer: int
    expert: int
    share: float
    times: float
    age_s: float
    traffic: tuple[Part, ...] = ()


class Replica(msgspec.Struct, frozen=True):
    """One replica, and the tokens of its engine since that began."""

    id: str
    tokens: int


class Quantiles(msgspec.Struct, frozen=True):
    """Of seconds."""

    p50: float
    p95: float
    p99: float


class TailRow(msgspec.Struct, frozen=True):
    """Requests that used about as many of the experts."""

    above: float
    to: float
    requests: int
    share: float
    distinct: float
    seconds: Quantiles | None
    seconds_per_token: Quantiles | None
    rare: bool


class Tail(msgspec.Struct, frozen=True):
    """Requests by how many of the experts they used."""

    requests: int
    rows: tuple[TailRow, ...]


Shares = tuple[tuple[float, ...], ...]
"""Of each layer's tokens, (layers x experts), 0 to 1."""


class ModelView(msgspec.Struct, frozen=True):
    """One model that tells of its experts. Figures by layer."""

    shape: Shape
    tokens: tuple[float, ...]
    tokens_per_s: float
    imbalance: tuple[float, ...]
    entropy: tuple[float, ...]
    shares: Shares
    hot: tuple[Hot, ...]
    traffic: dict[str, Shares]
    replicas: tuple[Replica, ...]
    tail: Tail | None
    pools: PoolsTold | None = None
    """None: its experts live in the engine."""


class ExpertsView(msgspec.Struct, frozen=True):
    """All of it."""

    half_life_s: float
    hot: float
    log_tokens: int
    models: dict[str, ModelView]
    silent: dict[str, tuple[str, ...]]
    silent_pools: dict[str, PoolsTold] = {}
    """Pools of models that do not tell of their experts."""


def fetch(api: Api) -> ExpertsView:
    """What the cluster tells. Raises `CliError` if no model tells of experts."""
    view = api.get(PATH, ExpertsView)
    if not view.models:
        raise none_tells(view)
    return view


def fetch_shown(api: Api, model: str | None = None) -> ExpertsView:
    """What there is to show, of one model or all: heat or pools. Raises `CliError` if there is neither."""
    view = api.get(PATH, ExpertsView)
    if model is None:
        if not view.models and not view.silent_pools:
            raise none_tells(view)
        return view
    if model not in view.models and model not in view.silent_pools:
        raise does_not_tell(view, model)
    return msgspec.structs.replace(
        view,
        models={name: one for name, one in view.models.items() if name == model},
        silent={name: why for name, why in view.silent.items() if name == model},
        silent_pools={name: pools for name, pools in view.silent_pools.items() if name == model},
    )


def none_tells(view: ExpertsView) -> CliError:
    """No model tells of experts."""
    if not view.silent:
        return CliError("no model of this cluster is sparse, so there are no experts to show")
    reasons = "; ".join(f"{name}: {', '.join(why)}" for name, why in view.silent.items())
    return CliError("no model tells which experts its tokens go to", reasons)


def does_not_tell(view: ExpertsView, model: str) -> CliError:
    """That model does not."""
    if model in view.silent:
        return CliError(f"{model} does not tell which experts its tokens go to: {', '.join(view.silent[model])}")
    there = ", ".join(view.models) or "none"
    return CliError(f"there is no sparse model {model}", f"Models that tell of their experts: {there}.", ExitCode.USAGE)
