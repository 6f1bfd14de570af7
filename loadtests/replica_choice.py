"""`python -m loadtests.replica_choice`: how long the choice of a replica takes, by the number of replicas."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from cluster.api.json_body import JsonValue
from cluster.routing.prefixes import PrefixIndex, prefixes_of
from cluster.routing.replicas import Replica, choose_replica
from loadtests.show import console, write_json
from loadtests.stats import quantile

application = typer.Typer(add_completion=False, help=__doc__)

BATCH = 20


def microseconds(replicas: int, batches: int) -> dict[str, float]:
    """Microseconds of a choice, and of what comes before it: the look at a chat of eight messages of 200 bytes each."""
    seen = [Replica(f"r{number:04}", number % 7, 64, (number % 10) / 10, 0.1) for number in range(replicas)]
    turns = {replica.name: number for number, replica in enumerate(seen)}
    messages: list[JsonValue] = [{"role": "user", "content": f"{number} " + "word " * 40} for number in range(8)]
    index, chats = PrefixIndex(), prefixes_of({"messages": messages}, ("tenant",))
    index.note(chats, "r0003")
    cached = index.cached(chats)
    chosen, looked = [], []
    for _ in range(batches):
        started = time.perf_counter()
        for _ in range(BATCH):
            choose_replica(seen, cached, turns)
        chosen.append((time.perf_counter() - started) / BATCH * 1e6)
        started = time.perf_counter()
        for _ in range(BATCH):
            index.cached(prefixes_of({"messages": messages}, ("tenant",)))
        looked.append((time.perf_counter() - started) / BATCH * 1e6)
    return {"choice_us": quantile(sorted(chosen), 0.5), "prefixes_us": quantile(sorted(looked), 0.5)}


@application.command()
def main(
    batches: Annotated[int, typer.Option(min=10, max=100_000, help="Batches per size.")] = 300,
    replicas: Annotated[str, typer.Option(help="Numbers of replicas, separated by commas.")] = "2,8,64,256",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """How long a choice of the replica takes, all of them healthy, one of them with the prefix."""
    figures = {int(size): microseconds(int(size), batches) for size in replicas.split(",")}
    for size, found in figures.items():
        console().print(
            f"{size} replicas: {found['choice_us']:.1f} us; prefixes of the prompt: {found['prefixes_us']:.1f} us"
        )
    if as_json:
        write_json(figures)


if __name__ == "__main__":
    application()
