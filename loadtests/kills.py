"""`python -m loadtests.kills`: kill a model's replicas or engines one after the other, under steady load, and count what is lost."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import httpx
import typer
from rich.table import Table

from deployments.head.state import read_state
from loadtests.machine import cluster_processes, look_at, tree
from loadtests.records import spread
from loadtests.running_cluster import ClusterError, RunningCluster
from loadtests.show import console, milliseconds, write_json
from loadtests.steady import Outcome, SteadyLoad
from loadtests.targets import Target, TargetError, parse_target

_REPLACED_S: Final = 240.0
"""Seconds that a replacement may take to be ready; a model of a few hundred million parameters takes under one minute."""

application = typer.Typer(add_completion=False, help=__doc__)


class Victim(StrEnum):
    """What is killed, always with SIGKILL."""

    REPLICA = "replica"
    """The actor; its engine goes with it."""
    ENGINE = "engine"
    """The engine's process alone."""


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill."""

    number: int
    pid: int
    replaced_s: float
    """Seconds until all replicas were ready again."""


@dataclass(frozen=True, slots=True)
class KillPlan:
    """What to kill how often, beside which load."""

    target: Target
    state_dir: Path
    model: str
    victim: Victim = Victim.REPLICA
    kills: int = 20
    replicas: int = 2
    """Replicas that are ready before each kill (a count)."""
    per_s: float = 5.0
    max_tokens: int = 8
    pause_s: float = 1.0
    """Seconds of load between a replacement that is ready and the next kill."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class KillReport:
    """What became of the requests."""

    kills: Sequence[Kill]
    outcomes: Sequence[Outcome]

    @property
    def lost(self) -> list[Outcome]:
        """Requests without a whole answer."""
        return [outcome for outcome in self.outcomes if not outcome.whole]

    @property
    def retried(self) -> int:
        """Requests that were sent to another replica before their first byte (a count)."""
        return sum(outcome.attempts > 1 for outcome in self.outcomes)


async def kill_all(plan: KillPlan, say: Callable[[Kill], None] = lambda _: None) -> KillReport:
    """Load from the first kill to the replacement of the last one. Raises `ClusterError` if a replica is not replaced."""
    source = random.Random(plan.seed)
    kills = []
    # Two clients: requests that wait must not keep the question whether replicas are ready from being asked.
    async with _client(plan.target) as client, _client(plan.target) as loading:
        await _until_whole(client, plan)
        async with SteadyLoad(loading, plan.model, plan.per_s, plan.max_tokens) as load:
            for number in range(plan.kills):
                await asyncio.sleep(plan.pause_s)
                actors = _actors(plan)
                pid = source.choice(_victims(plan, actors))
                os.kill(pid, signal.SIGKILL)
                killed = time.monotonic()
                await _until_whole(client, plan, earlier=actors)
                kills.append(Kill(number, pid, time.monotonic() - killed))
                say(kills[-1])
            await asyncio.sleep(plan.pause_s)
    return KillReport(kills, load.outcomes)


def _client(target: Target) -> httpx.AsyncClient:
    headers = {} if target.key is None else {"authorization": f"Bearer {target.key}"}
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=target.root, headers=headers, limits=limits, trust_env=False)


def _titles(plan: KillPlan) -> dict[int, str]:
    """All processes of the cluster, with what `ps` shows of them. Never one of another cluster."""
    state = read_state(plan.state_dir)
    if state is None:
        raise ClusterError(f"no cluster runs from {plan.state_dir}; give its --state-dir")
    ours = tree(state.pid) | cluster_processes().get(state.cluster_id, set())
    return {pid: shown.title for pid in ours if (shown := look_at(pid)) is not None}


def _actors(plan: KillPlan) -> list[int]:
    title = f"ray::ServeReplica:model-{plan.model}:"
    return sorted(pid for pid, name in _titles(plan).items() if name.startswith(title))


def _victims(plan: KillPlan, actors: Sequence[int]) -> list[int]:
    """The actors, or the engines below them."""
    found = list(actors)
    if plan.victim is Victim.ENGINE:
        titles = _titles(plan)
        below = {pid: titles.get(pid, "") for actor in actors for pid in tree(actor) - {actor}}
        # The second is what an engine is called where its environment left no room for vLLM's own title.
        found = sorted(
            pid for pid, name in below.items() if name.startswith("VLLM::") or "multiprocessing.spawn" in name
        )
    if not found:
        where = "does it run on this machine, on that kind of engine?"
        raise ClusterError(f"no {plan.victim} of {plan.model!r} found: {where}")
    return found


async def _ready(client: httpx.AsyncClient, model: str) -> int:
    answer = await client.get("/readyz", timeout=10.0)
    state = answer.json()["models"].get(model)
    if state is None:
        raise ClusterError(f"the cluster has no model {model!r}")
    return int(state["replicas"])


async def _until_whole(client: httpx.AsyncClient, plan: KillPlan, earlier: Sequence[int] = ()) -> None:
    """Until enough replicas are ready; one of those that were there `earlier` must be gone, and another actor in its place."""
    deadline = time.monotonic() + _REPLACED_S
    while not (_one_was_replaced(plan, earlier) and await _ready(client, plan.model) >= plan.replicas):
        if time.monotonic() > deadline:
            message = f"{plan.model!r} had no {plan.replicas} replicas ready within {_REPLACED_S:g} s"
            raise ClusterError(f"{message}; see `pointsman status`, and `replicas.min` in its config")
        await asyncio.sleep(0.1)


def _one_was_replaced(plan: KillPlan, earlier: Sequence[int]) -> bool:
    if not earlier:
        return True
    actors = _actors(plan)
    return any(pid not in actors for pid in earlier) and any(pid not in earlier for pid in actors)


@application.command()
def main(  # noqa: PLR0913, PLR0917 - a command's options
    config: Annotated[
        Path, typer.Option(exists=True, help="Config of the cluster, two replicas of the model or more.")
    ],
    state_dir: Annotated[Path, typer.Option(help="Its state directory.")],
    model: Annotated[str, typer.Option(help="Model whose replicas are killed.")],
    url: Annotated[str, typer.Option(help="Where it answers; it is started unless it does.")] = "http://127.0.0.1:8000",
    victim: Annotated[Victim, typer.Option(help="What is killed.")] = Victim.REPLICA,
    kills: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    replicas: Annotated[int, typer.Option(min=1, max=64, help="Replicas that must be ready before each kill.")] = 2,
    per_s: Annotated[float, typer.Option(min=0.1, max=100, help="Requests a second.")] = 5.0,
    max_tokens: Annotated[int, typer.Option(min=1, max=512, help="Tokens of an answer.")] = 8,
    seed: Annotated[int, typer.Option(help="Which ones are killed.")] = 0,
    key: Annotated[str | None, typer.Option(envvar="POINTSMAN_API_KEY", help="API key.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Kill again and again, each time after the last one was replaced; exit code 1 if a request was lost."""
    screen = console()
    try:
        target = parse_target(url, key)
        plan = KillPlan(target, state_dir, model, victim, kills, replicas, per_s, max_tokens, seed=seed)
        with RunningCluster(url, config, state_dir, key, screen.print) as cluster:
            cluster.wait_for(model)
            report = asyncio.run(
                kill_all(
                    plan,
                    lambda kill: screen.print(
                        f"kill {kill.number + 1} of {kills}: replaced after {kill.replaced_s:.1f} s"
                    ),
                )
            )
    except (TargetError, ClusterError) as error:
        screen.print(str(error))
        raise typer.Exit(2) from None
    screen.print(_table(report))
    if as_json:
        write_json(
            {
                "kills": [asdict(kill) for kill in report.kills],
                "requests": len(report.outcomes),
                "lost": [asdict(outcome) for outcome in report.lost],
                "retried": report.retried,
            }
        )
    raise typer.Exit(1 if report.lost else 0)


def _table(report: KillReport) -> Table:
    seconds = spread([outcome.seconds for outcome in report.outcomes])
    replaced = spread([kill.replaced_s for kill in report.kills])
    table = Table(title="Kills under load", title_justify="left")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in (
        ("kills", str(len(report.kills))),
        ("requests", str(len(report.outcomes))),
        ("lost", str(len(report.lost))),
        ("sent again before the first byte", str(report.retried)),
        ("request p50", milliseconds(seconds.p50)),
        ("request p99", milliseconds(seconds.p99)),
        ("replaced p50", milliseconds(replaced.p50)),
    ):
        table.add_row(name, value)
    return table


if __name__ == "__main__":
    application()
