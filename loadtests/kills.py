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
    async with httpx.AsyncClient(base_url=plan.target.root, headers=_headers(plan.target), trust_env=False) as client:
        replicas = await _ready(client, plan.model)
        if replicas < 1:
            raise ClusterError(f"no replica of {plan.model!r} is ready; wait until `pointsman status` says so")
        async with SteadyLoad(client, plan.model, plan.per_s, plan.max_tokens) as load:
            for number in range(plan.kills):
                await asyncio.sleep(plan.pause_s)
                pid = source.choice(_victims(plan))
                os.kill(pid, signal.SIGKILL)
                killed = time.monotonic()
                await _until_replaced(client, plan, replicas, pid)
                kills.append(Kill(number, pid, time.monotonic() - killed))
                say(kills[-1])
            await asyncio.sleep(plan.pause_s)
    return KillReport(kills, load.outcomes)


def _headers(target: Target) -> dict[str, str]:
    return {} if target.key is None else {"authorization": f"Bearer {target.key}"}


def _victims(plan: KillPlan) -> list[int]:
    """Actors of the model in this cluster, or the engines below them. Never a process of another cluster."""
    state = read_state(plan.state_dir)
    if state is None:
        raise ClusterError(f"no cluster runs from {plan.state_dir}; give its --state-dir")
    title = f"ray::ServeReplica:model-{plan.model}:"
    ours = {pid for pid in tree(state.pid) if look_at(pid)} | cluster_processes().get(state.cluster_id, set())
    seen = {pid: found.title for pid in ours if (found := look_at(pid)) is not None}
    actors = [pid for pid, name in seen.items() if name.startswith(title)]
    if plan.victim is Victim.REPLICA:
        found = actors
    else:
        below = {pid for actor in actors for pid in tree(actor) - {actor}}
        # The second is what an engine is called where its environment left no room for vLLM's own title.
        found = [
            pid
            for pid in below
            if seen.get(pid, "").startswith("VLLM::") or "multiprocessing.spawn" in seen.get(pid, "")
        ]
    if not found:
        raise ClusterError(
            f"no {plan.victim} of {plan.model!r} found: does it run on this machine, on that kind of engine?"
        )
    return sorted(found)


async def _ready(client: httpx.AsyncClient, model: str) -> int:
    answer = await client.get("/readyz", timeout=10.0)
    state = answer.json()["models"].get(model)
    if state is None:
        raise ClusterError(f"the cluster has no model {model!r}")
    return int(state["replicas"])


async def _until_replaced(client: httpx.AsyncClient, plan: KillPlan, replicas: int, pid: int) -> None:
    deadline = time.monotonic() + _REPLACED_S
    while look_at(pid) is not None or await _ready(client, plan.model) < replicas:
        if time.monotonic() > deadline:
            raise ClusterError(f"a killed {plan.victim} of {plan.model!r} was not replaced within {_REPLACED_S:g} s")
        await asyncio.sleep(0.1)


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
        plan = KillPlan(target, state_dir, model, victim, kills, per_s, max_tokens, seed=seed)
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
