"""`python -m loadtests.decisions`: how long a choice of the model takes, by the number of models."""

from __future__ import annotations

import asyncio
import json
import time
from asyncio import StreamWriter
from math import inf
from typing import Annotated, cast

import typer

from cluster.config.cluster import ClusterConfig
from cluster.routing.resolve import Policy
from cluster.routing.signals import RequestSignals
from cluster.routing.snapshot import ModelState
from deployments.channel.messages import Hello
from deployments.channel.receiver import AttachedReplica, ChannelReceiver
from deployments.engines.protocol import EngineStats
from deployments.ingress.dispatch import ModelClient
from deployments.ingress.health import Health
from deployments.ingress.recent import RecentAnswers
from loadtests.show import console
from loadtests.stats import quantile

application = typer.Typer(add_completion=False, help=__doc__)

BATCH = 50
"""Decisions between two looks at the clock, which itself takes a tenth of a microsecond."""


def portfolio(models: int) -> ClusterConfig:
    """So many dense models that all play the role `strong`, so that each of them is scored."""
    made = {
        f"model{number}": {"kind": "dense", "roles": ["strong", "fast", "fluency"], "source": "embedded:dense"}
        for number in range(models)
    }
    return ClusterConfig.model_validate({"models": made})


def microseconds(models: int, batches: int) -> list[float]:
    """Microseconds of a decision over `models` candidates, one figure per batch, sorted."""
    config = portfolio(models)
    policy = Policy(config)
    signals = RequestSignals(embedding=False, prompt_tokens=500, max_tokens=None)
    snapshot = {name: ModelState(1, running=3, waiting=1, kv_usage=0.3, ttft_s=0.5) for name in config.models}
    taken = []
    for _ in range(batches):
        started = time.perf_counter()
        for _ in range(BATCH):
            policy.decide("auto", signals, snapshot)
        taken.append((time.perf_counter() - started) / BATCH * 1e6)
    return sorted(taken)


class _Attached:
    """Stands in for the token channel: replicas that have told of themselves."""

    def __init__(self, models: int, replicas: int) -> None:
        stats = EngineStats(running=3, waiting=1, kv_usage=0.3)
        self._replicas = tuple(
            AttachedReplica(
                Hello("", f"r{number}", f"model{model}", "none", 0, ()), cast("StreamWriter", None), inf, stats
            )
            for model in range(models)
            for number in range(replicas)
        )

    def attached(self) -> tuple[AttachedReplica, ...]:
        """All of them."""
        return self._replicas


def refresh_microseconds(models: int, replicas: int, batches: int) -> list[float]:
    """Microseconds in which the snapshot of so many models of so many replicas each is made, sorted."""

    async def measure() -> list[float]:
        channel = cast("ChannelReceiver", _Attached(models, replicas))
        names = [f"model{model}" for model in range(models)]
        clients = cast("dict[str, ModelClient]", dict.fromkeys(names))
        health = Health(clients, channel, lambda _: None, RecentAnswers(names))
        taken = []
        for _ in range(batches):
            started = time.perf_counter()
            for _ in range(BATCH):
                health.models()
            taken.append((time.perf_counter() - started) / BATCH * 1e6)
        return sorted(taken)

    return asyncio.run(measure())


@application.command()
def main(
    batches: Annotated[int, typer.Option(min=10, max=100_000, help="Batches of decisions per size.")] = 300,
    models: Annotated[str, typer.Option(help="Numbers of models, separated by commas.")] = "1,8,64,256",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """How long a choice of the model takes, all models healthy and scored."""
    figures = {}
    for size in (int(part) for part in models.split(",")):
        taken = microseconds(size, batches)
        refreshed = refresh_microseconds(size, 2, max(10, batches // 10))
        figures[size] = {
            "median_us": quantile(taken, 0.5),
            "p99_us": quantile(taken, 0.99),
            "snapshot_of_two_replicas_each_us": quantile(refreshed, 0.5),
        }
        if not as_json:
            console().print(
                f"{size} models: median {quantile(taken, 0.5):.1f} us, p99 {quantile(taken, 0.99):.1f} us; "
                f"the snapshot before it, two replicas each: {quantile(refreshed, 0.5):.1f} us"
            )
    if as_json:
        typer.echo(json.dumps(figures, indent=2))


if __name__ == "__main__":
    application()
