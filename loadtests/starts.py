"""`python -m loadtests.starts`: start a cluster, kill a part of it, and look for processes left behind; again and again."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.table import Table

from deployments.head.state import ClusterState, read_state
from loadtests.machine import Seen, all_pids, cluster_processes, engines_of_nobody, look_at, still_there, tree
from loadtests.running_cluster import pointsman
from loadtests.show import console, write_json

_TITLES: Final = {
    "actor": re.compile(r"^ray::\w*Replica"),
    # The second is what an engine is called where its environment left no room for vLLM's own title.
    "engine": re.compile(r"^VLLM::|multiprocessing\.spawn"),
}

_DRIVER: Final = re.compile(r"loadtests\.starts")

application = typer.Typer(add_completion=False, help=__doc__)


class Blow(StrEnum):
    """What ends a cluster, or a part of it."""

    HEAD = "head"
    """kill -9 of the head process."""
    ACTOR = "actor"
    """kill -9 of one replica's actor, then `pointsman down`."""
    ENGINE = "engine"
    """kill -9 of one engine process, then `pointsman down`."""
    DOWN = "down"
    """`pointsman down`."""


@dataclass(frozen=True, slots=True)
class Cycle:
    """One start and end."""

    number: int
    blow: Blow
    up_s: float
    processes: int
    """Processes of the cluster once it was up."""
    orphans_s: float | None
    """Seconds until the children of a killed actor were gone; None where none was killed, or if they stayed."""
    gone_s: float | None
    """Seconds until no process was left; None if some were at the end of the wait."""
    left: tuple[Seen, ...]
    problem: str = ""

    @property
    def clean(self) -> bool:
        """Whether it started, and nothing was left."""
        return not self.left and not self.problem


def processes_of_cluster(state: ClusterState | None) -> list[Seen]:
    """All processes of a cluster: below its head, and with its marker wherever they are."""
    if state is None:
        return []
    pids = tree(state.pid) | cluster_processes().get(state.cluster_id, set())
    return [seen for seen in map(look_at, pids) if seen is not None]


def processes_of_others(state: ClusterState | None) -> set[int]:
    """What belongs to other clusters and to other drivers like this one, which may start and end beside it.

    With our own cluster unknown, every marked process might be its.
    """
    drivers = {pid for pid in all_pids() if (seen := look_at(pid)) is not None and _DRIVER.search(seen.title)}
    # One whose tree holds this process is this one, or a shell or `timeout` around it.
    found = {pid for family in map(tree, drivers) if os.getpid() not in family for pid in family}
    if state is not None:
        marked = cluster_processes().items()
        found |= {pid for cluster, pids in marked if cluster != state.cluster_id for pid in pids}
    return found


def run_cycle(
    number: int, blow: Blow, config: Path, state_dir: Path, patience_s: float, source: random.Random
) -> Cycle:
    """Start, strike, wait. What is left of ours is killed, so that the next cycle starts clean."""
    # Engines of others are not ours to count, nor to kill.
    strangers = {seen.pid for seen in engines_of_nobody(())}
    began = time.monotonic()
    done = pointsman("up", "--config", str(config), "--state-dir", str(state_dir))
    up_s = time.monotonic() - began
    state = read_state(state_dir)
    known = processes_of_cluster(state)
    problem = (
        "" if done.returncode == 0 else f"`pointsman up` ended with {done.returncode}: {done.stderr.strip()[-200:]}"
    )
    orphans_s: float | None = None
    struck = time.monotonic()
    if blow is Blow.HEAD and state is not None:
        _kill(state.pid)
    elif blow in (Blow.ACTOR, Blow.ENGINE) and not problem:
        victims = [seen for seen in known if _TITLES[blow.value].match(seen.title)]
        if victims:
            victim = source.choice(victims)
            children = [seen for seen in map(look_at, tree(victim.pid)) if seen is not None]
            _kill(victim.pid)
            orphans_s = _wait_gone(lambda: children, patience_s)
            if orphans_s is None:
                problem = f"children of a killed {blow} stayed: {[seen.pid for seen in children if still_there(seen)]}"
        else:
            problem = f"no process looks like an {blow}"
        # A replacement may be on its way by now: it belongs to the cluster too.
        known += processes_of_cluster(read_state(state_dir))
    if blow is not Blow.HEAD:
        struck = time.monotonic()
        down = pointsman("down", "--state-dir", str(state_dir))
        if down.returncode != 0:
            problem = problem or f"`pointsman down` ended with {down.returncode}: {down.stderr.strip()[-200:]}"

    def ours() -> set[Seen]:
        return {seen for seen in {*known, *processes_of_cluster(state)} if still_there(seen)}

    def remaining() -> set[Seen]:
        return ours() | set(engines_of_nobody(strangers | processes_of_others(state)))

    gone_s = _wait_gone(remaining, patience_s, struck)
    left = tuple(remaining()) if gone_s is None else ()
    # Only what is surely ours: the rest may be an engine that somebody else has just started.
    killed = ours()
    for seen in killed:
        _kill(seen.pid)
    _wait_gone(lambda: killed, patience_s)
    pointsman("down", "--state-dir", str(state_dir))
    return Cycle(number, blow, up_s, len(known), orphans_s, gone_s, left, problem)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _wait_gone(remaining: Callable[[], Iterable[Seen]], patience_s: float, since: float | None = None) -> float | None:
    """Seconds from `since` (default: now) until none is there; None if some still are after `patience_s`."""
    began = time.monotonic()
    while any(still_there(seen) for seen in remaining()):
        if time.monotonic() - began > patience_s:
            return None
        time.sleep(0.1)
    return time.monotonic() - (since if since is not None else began)


def cycles_table(cycles: list[Cycle]) -> Table:
    """What was seen, by blow."""
    table = Table(title="starts and kills", title_justify="left")
    for name in ("blow", "cycles", "clean", "up, median", "gone, max", "left behind"):
        table.add_column(name, justify="left" if name == "blow" else "right")
    for blow in Blow:
        of_blow = [cycle for cycle in cycles if cycle.blow is blow]
        if of_blow:
            gone = [cycle.gone_s for cycle in of_blow if cycle.gone_s is not None]
            table.add_row(
                str(blow),
                str(len(of_blow)),
                str(sum(cycle.clean for cycle in of_blow)),
                f"{sorted(cycle.up_s for cycle in of_blow)[len(of_blow) // 2]:.1f} s",
                f"{max(gone):.1f} s" if gone else "-",
                str(sum(len(cycle.left) for cycle in of_blow)),
            )
    return table


@application.command()
def starts(
    *,
    config: Annotated[Path, typer.Option(help="Config of the cluster to start.")],
    state_dir: Annotated[Path, typer.Option(help="State directory for it; not one that is in use.")],
    cycles: Annotated[int, typer.Option(min=1, max=1000, help="Starts in all.")] = 50,
    patience: Annotated[float, typer.Option(help="Seconds that processes may take to go.")] = 15.0,
    blows: Annotated[str, typer.Option(help="What ends them, in turn.")] = ",".join(Blow),
    seed: Annotated[int, typer.Option(help="Chooses the victims.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Exits with 1 if a cluster did not start, or if any process was left behind."""
    screen = console()
    try:
        order = [Blow(text) for text in blows.split(",")]
    except ValueError as error:
        screen.print(f"{error}; --blows takes {', '.join(Blow)}", style="red")
        raise typer.Exit(2) from None
    found = read_state(state_dir)
    if found is not None and found.alive:
        screen.print(
            f"a cluster runs with {state_dir}; take another --state-dir, so that it is not killed", style="red"
        )
        raise typer.Exit(2)
    source = random.Random(seed)
    seen = []
    for number in range(cycles):
        cycle = run_cycle(number, order[number % len(order)], config, state_dir, patience, source)
        seen.append(cycle)
        what = "clean" if cycle.clean else cycle.problem or ", ".join(f"{s.pid} {s.title[:40]!r}" for s in cycle.left)
        screen.print(f"{number + 1} of {cycles}: {cycle.blow}, up in {cycle.up_s:.1f} s, {what}")
    if as_json:
        write_json([asdict(cycle) for cycle in seen])
    else:
        screen.print(cycles_table(seen))
    if not all(cycle.clean for cycle in seen):
        raise typer.Exit(1)


if __name__ == "__main__":
    application()
