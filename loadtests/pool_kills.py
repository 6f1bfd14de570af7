"""`python -m loadtests.pool_kills`: kill replicas of expert pools one after the other, under steady load, and count what is lost."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from cluster.config.mistakes import ConfigError
from loadtests.burst.arms import SHAPE, Arm, Terms
from loadtests.burst.load import Kind, Phases, Request, Texts
from loadtests.burst.offer import Outcome, SteadyOffer
from loadtests.burst.run import Scene, Stage, at_rest, stage
from loadtests.burst.watch import Sample, Watch, WatchError
from loadtests.client import Failure
from loadtests.machine import cpu_model, look_at
from loadtests.records import SIMULATED, spread
from loadtests.running_cluster import ClusterError
from loadtests.show import console
from loadtests.targets import TargetError

REPLACED_S: Final = 120.0
"""Seconds that a replacement may take, and the one that was killed to be forgotten."""
_EVERY_S: Final = 0.2

application = typer.Typer(add_completion=False, help=__doc__)


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill."""

    number: int
    pool: str
    pid: int
    replaced_s: float
    """Seconds until another replica of the pool was in the map that engines work by."""


@dataclass(frozen=True, slots=True)
class KillReport:
    """What became of the requests."""

    kills: Sequence[Kill]
    outcomes: Sequence[Outcome]

    @property
    def lost(self) -> list[Outcome]:
        """Requests without a whole answer, but for those that hung."""
        return [one for one in self.outcomes if one.problem is not None and one.problem != Failure.TIMEOUT]

    @property
    def hung(self) -> list[Outcome]:
        """Requests without an answer within the limit."""
        return [one for one in self.outcomes if one.problem == Failure.TIMEOUT]

    @property
    def degraded(self) -> list[Outcome]:
        """Answers in which other experts stood in for some."""
        return [one for one in self.outcomes if one.degraded_rows]

    @property
    def resent(self) -> list[Outcome]:
        """Answers of which some part was sent to a second replica."""
        return [one for one in self.outcomes if one.resent_rows]

    @property
    def simulated(self) -> bool:
        """Whether the answers came from a simulated engine. Raises `ValueError` if some did and some did not."""
        found = {one.model.endswith(SIMULATED) for one in self.outcomes if one.problem is None}
        if len(found) > 1:
            raise ValueError("some answers came from a simulated engine and some from a real one")
        return True in found


@dataclass(frozen=True, slots=True)
class KillPlan:
    """What to kill how often, beside which load."""

    kills: int
    per_s: float
    max_tokens: int
    hang_s: float
    pause_s: float = 1.0
    """Seconds of load between a replacement that is there and the next kill."""
    seed: int = 0


async def kill_all(on: Stage, plan: KillPlan, say: Callable[[Kill], None]) -> KillReport:
    """Load from before the first kill to after the replacement of the last one. Raises `ClusterError` if one is not replaced."""
    await at_rest(on)
    source = random.Random(plan.seed)
    texts = Texts(plan.seed)

    def made(number: int, at_s: float) -> Request:
        kind = source.choice(tuple(Kind))
        return Request(number, at_s, kind, texts.next(kind), plan.max_tokens)

    kills = []
    watch = Watch(on.target, on.scene.model, time.perf_counter())
    try:
        async with SteadyOffer(on.target, on.scene.model, plan.per_s, plan.hang_s, made) as load:
            for number in range(plan.kills):
                await asyncio.sleep(plan.pause_s)
                kills.append(await _kill(on, watch, number, source))
                say(kills[-1])
            await asyncio.sleep(plan.pause_s)
    finally:
        watch.close()
    return KillReport(kills, load.outcomes)


async def _kill(on: Stage, watch: Watch, number: int, source: random.Random) -> Kill:
    """Kill one, wait until it was replaced and forgotten. Raises `ClusterError`."""
    actors = actors_of(on)
    if not actors:
        raise ClusterError("no process of a replica of a pool was found; does it run on this machine?")
    pid = source.choice(sorted(actors))
    pool = actors[pid]
    count = sum(one == pool for one in actors.values())
    # One that has only just answered may not be told of everywhere.
    deadline = time.monotonic() + REPLACED_S
    while len(before := _names(await _sample(watch), pool)) != count and time.monotonic() < deadline:
        await asyncio.sleep(_EVERY_S)
    os.kill(pid, signal.SIGKILL)
    killed, replaced_s = time.monotonic(), None
    while time.monotonic() - killed < REPLACED_S:
        await asyncio.sleep(_EVERY_S)
        now = _names(await _sample(watch), pool)
        if now - before and replaced_s is None:
            replaced_s = time.monotonic() - killed
        if replaced_s is not None and len(now) == count:
            return Kill(number, pool, pid, replaced_s)
    raise ClusterError(f"a replica of pool {pool} was not replaced within {REPLACED_S:g} s; see `pointsman experts`")


async def _sample(watch: Watch) -> Sample:
    """How pools stand; asked again while nobody answers, which a cluster under kills may not do at once."""
    deadline = time.monotonic() + REPLACED_S
    while True:
        try:
            return await watch.now()
        except WatchError as error:
            if time.monotonic() > deadline:
                raise ClusterError(str(error)) from error
            await asyncio.sleep(_EVERY_S)


def _names(sample: Sample, pool: str) -> frozenset[str]:
    return frozenset(one.name for view in sample.pools if view.name == pool for one in view.replicas)


def actors_of(on: Stage) -> dict[int, str]:
    """Pool by process id of its replicas, of this cluster alone."""
    titles = {pid: shown.title for pid in on.cluster.pids() if (shown := look_at(pid)) is not None}
    return {pid: pool for pid, title in titles.items() if (pool := pool_of(title, on.scene.model)) is not None}


def pool_of(title: str, model: str) -> str | None:
    """The pool that a process is a replica of, as `ps` shows it; None: of none of this model's."""
    application, found, pool = title.removeprefix("ray::ServeReplica:").partition(":Pool-")
    if not title.startswith("ray::ServeReplica:") or not found:
        return None
    return pool.split(" ", 1)[0] if application.split("~", 1)[0] == f"pools-{model}" else None


@application.command()
def main(  # noqa: PLR0913 - a command's options
    *,
    config: Annotated[Path, typer.Option(help="Config with a model whose experts live in pools.")] = Path(
        "infra/clusters/pools.yaml"
    ),
    model: Annotated[str, typer.Option(help="That model.")] = "sparse",
    simulated: Annotated[
        bool,
        typer.Option("--simulated", help="The simulated engine, which checks what pools answer; 50 kills by default."),
    ] = False,
    kills: Annotated[int | None, typer.Option(min=1, max=1000, help="Default: 10, or 50 simulated.")] = None,
    replicas: Annotated[int, typer.Option(min=1, max=16, help="Replicas of each pool.")] = 2,
    per_s: Annotated[float, typer.Option(min=0.1, max=100, help="Requests a second.")] = 2.0,
    max_tokens: Annotated[int, typer.Option(min=1, max=512, help="Tokens of an answer.")] = 8,
    hang_s: Annotated[
        float, typer.Option(min=1, max=600, help="Seconds without an answer after which a request hangs.")
    ] = 60.0,
    seed: Annotated[int, typer.Option(help="Which ones are killed, and the requests.")] = 0,
    port: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="Where the cluster answers; default: the config's.")
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="State directory of the cluster; default: one that is removed.")
    ] = None,
    key: Annotated[str | None, typer.Option(envvar="POINTSMAN_API_KEY", help="API key.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for results.")] = Path("out"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Kill again and again, each time after the last one was replaced; exit code 1 if a request was lost or hung."""
    screen = console()
    signal.signal(signal.SIGTERM, _stop)
    count = kills or (50 if simulated else 10)
    plan = KillPlan(count, per_s, max_tokens, hang_s, seed=seed)
    try:
        terms = Terms(None, None, simulated, SHAPE, port)
        scene = Scene(
            config.read_text(encoding="utf-8"), model, terms, Phases(), max_tokens, key, state_dir, screen.print
        )
        with stage(scene, Arm("kills", replicas)) as on:
            report = asyncio.run(
                kill_all(
                    on,
                    plan,
                    lambda kill: screen.print(
                        f"kill {kill.number + 1} of {count}, pool {kill.pool}: replaced after {kill.replaced_s:.1f} s"
                    ),
                )
            )
        text = report_json(report, plan, {"model": model, "replicas": replicas})
    except (ConfigError, TargetError, ClusterError, OSError, ValueError) as error:
        screen.print(str(error), style="red")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        screen.print("stopped; what was started here is down")
        raise typer.Exit(130) from None
    out.mkdir(parents=True, exist_ok=True)
    (out / "pool_kills.json").write_text(text + "\n", encoding="utf-8")
    screen.print(table_of(report))
    if as_json:
        sys.stdout.write(text + "\n")
    raise typer.Exit(1 if report.lost or report.hung else 0)


def table_of(report: KillReport) -> Table:
    """The figures for people."""
    seconds = spread([one.total_s for one in report.outcomes if one.problem is None])
    replaced = sorted(one.replaced_s for one in report.kills)
    engine = " (simulated engine)" if report.simulated else ""
    table = Table(title=f"Kills of pool replicas under load{engine}", title_justify="left")
    table.add_column("measure")
    table.add_column("value", justify="right")
    rows = [
        ("kills", str(len(report.kills))),
        ("requests", str(len(report.outcomes))),
        ("lost", str(len(report.lost))),
        ("hung", str(len(report.hung))),
        ("with other experts standing in", str(len(report.degraded))),
        ("with a part sent to a second replica", str(len(report.resent))),
        *((f"request {name}", _seconds(getattr(seconds, name))) for name in ("p50", "p95", "p99")),
        ("replaced, median", _seconds(replaced[len(replaced) // 2] if replaced else None)),
        ("replaced, longest", _seconds(replaced[-1] if replaced else None)),
    ]
    for name, value in rows:
        table.add_row(name, value)
    return table


def report_json(report: KillReport, plan: KillPlan, settings: dict[str, Any]) -> str:
    """The figures, and what they are made of."""
    document = {
        "simulated": report.simulated,
        "settings": {**settings, **asdict(plan), "cpus": os.cpu_count(), "cpu_model": cpu_model()},
        "kills": [asdict(one) for one in report.kills],
        "requests": len(report.outcomes),
        "lost": [asdict(one) for one in report.lost],
        "hung": [asdict(one) for one in report.hung],
        "degraded": len(report.degraded),
        "resent": len(report.resent),
        "seconds": asdict(spread([one.total_s for one in report.outcomes if one.problem is None])),
    }
    return json.dumps(document, indent=2)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    application()
