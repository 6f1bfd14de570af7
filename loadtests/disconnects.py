"""`python -m loadtests.disconnects`: clients that go away, and how soon the engine has their memory back."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Annotated, Final

import typer
from rich.table import Table

from cluster.telemetry.metric_table import KV_USAGE
from loadtests.driver import LoadPlan, encode_chat, request_body
from loadtests.kv_probe import KvProbe, ProbeError, metrics_probe, wait_until_at_most
from loadtests.prompts import story_prompt
from loadtests.records import spread
from loadtests.show import console, milliseconds, write_json
from loadtests.targets import Target, TargetError, parse_target

_GIVE_UP_S: Final = 15.0
_HOLD_POLLS: Final = 50

application = typer.Typer(add_completion=False, help=__doc__)


class Leaving(StrEnum):
    """When a client goes away."""

    STREAMED = "streamed"
    """In the middle of a stream."""
    PLAIN = "plain"
    """While it waits for a plain answer."""
    QUEUED = "queued"
    """While its request waits behind more requests than the engine takes at once; all of them go."""


@dataclass(frozen=True, slots=True)
class Departure:
    """One disconnect. `seconds` until KV usage was back at its base; None if it never was in 15 s."""

    number: int
    kind: Leaving
    seconds: float | None
    held: float
    """KV usage just before the client left."""


@dataclass(frozen=True, slots=True)
class DisconnectPlan:
    """What to do how often."""

    target: Target
    model: str
    count: int = 200
    crowd: int = 40
    """Requests of a queued departure; more than the engine runs at once."""
    max_tokens: int = 400
    seed: int = 0


async def disconnect_all(
    plan: DisconnectPlan, probe: KvProbe, say: Callable[[Departure], None]
) -> tuple[float, list[Departure]]:
    """Disconnect `count` times, in turn streamed, plain and queued; returns the base and what was seen.

    The base is what the probe says at rest. Raises `ProbeError`.
    """
    source = random.Random(plan.seed)
    base = await _base(probe)
    kinds = tuple(Leaving)
    seen = []
    for number in range(plan.count):
        kind = kinds[number % len(kinds)]
        held = await _depart(plan, kind, number, source, probe)
        seconds = await wait_until_at_most(probe, base, _GIVE_UP_S)
        departure = Departure(number, kind, seconds, held)
        seen.append(departure)
        say(departure)
    return base, seen


async def _base(probe: KvProbe) -> float:
    readings = []
    for _ in range(5):
        readings.append(await probe())
        await asyncio.sleep(0.1)
    return max(readings)


async def _depart(plan: DisconnectPlan, kind: Leaving, number: int, source: random.Random, probe: KvProbe) -> float:
    """Send requests of a kind, leave at a random moment, and return the KV usage seen just before."""
    crowd = plan.crowd if kind is Leaving.QUEUED else 1
    writers: list[asyncio.StreamWriter] = []
    try:
        for index in range(crowd):
            reader, writer = await _send(plan, kind, number * plan.crowd + index)
            writers.append(writer)
            if kind is Leaving.STREAMED:
                await _read_events(plan.target, reader, source.randrange(2, 20))
        if kind is not Leaving.STREAMED:
            await asyncio.sleep(source.uniform(0.05, 0.6))
        return await _held(probe)
    finally:
        for writer in writers:
            # Half of them say goodbye, half just vanish.
            if source.random() < 0.5:
                writer.close()
            else:
                writer.transport.abort()
        for writer in writers:
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _held(probe: KvProbe) -> float:
    """KV usage as soon as there is some: on a slow processor the first step takes longer than a client's patience."""
    for _ in range(_HOLD_POLLS):
        if (usage := await probe()) > 0:
            return usage
        await asyncio.sleep(0.1)
    return 0.0


async def _read_events(target: Target, reader: asyncio.StreamReader, count: int) -> None:
    try:
        async with asyncio.timeout(30.0):
            status = await reader.readline()
            if b" 200 " in status:
                for _ in range(count):
                    await reader.readuntil(b"\n\n")
                return
    except (TimeoutError, asyncio.IncompleteReadError):
        raise ProbeError(f"a stream of {target.root} ended or stood still before a client could leave it") from None
    raise ProbeError(f"{target.root} answers {status.decode(errors='replace').strip()!r} to a stream")


async def _send(plan: DisconnectPlan, kind: Leaving, index: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    load = LoadPlan(plan.target, plan.model, max_tokens=plan.max_tokens, ignore_eos=True)
    body = request_body(load, story_prompt(plan.seed, index), plan.max_tokens)
    if kind is Leaving.PLAIN:
        body["stream"] = False
        del body["stream_options"]
    reader, writer = await asyncio.open_connection(plan.target.host, plan.target.port)
    writer.write(encode_chat(plan.target, body))
    await writer.drain()
    return reader, writer


def departures_table(base: float, seen: Sequence[Departure]) -> Table:
    """Times until memory was back, by kind."""
    table = Table(title=f"KV usage back to its base of {base:.4f} after a disconnect", title_justify="left")
    for name in ("kind", "count", "p50", "p95", "max", "over 1 s", "never", "held before, mean"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    for kind in Leaving:
        of_kind = [departure for departure in seen if departure.kind is kind]
        times = [departure.seconds for departure in of_kind if departure.seconds is not None]
        if of_kind:
            quantiles = spread(times)
            table.add_row(
                str(kind),
                str(len(of_kind)),
                milliseconds(quantiles.p50),
                milliseconds(quantiles.p95),
                milliseconds(max(times, default=None)),
                str(sum(1 for time in times if time > 1.0)),
                str(len(of_kind) - len(times)),
                f"{sum(departure.held for departure in of_kind) / len(of_kind):.4f}",
            )
    return table


@application.command()
def disconnects(
    *,
    model: Annotated[str, typer.Option(help="Model to ask.")] = "dense",
    url: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:8000",
    count: Annotated[int, typer.Option(min=1, max=10_000, help="Disconnects in all.")] = 200,
    crowd: Annotated[int, typer.Option(min=2, max=256, help="Requests of a queued departure.")] = 40,
    gauge: Annotated[str, typer.Option(help="Name of the KV usage gauge in /metrics.")] = KV_USAGE.name,
    within: Annotated[float, typer.Option(help="Seconds within which memory has to be back.")] = 1.0,
    key: Annotated[str | None, typer.Option(envvar="POINTSMAN_API_KEY", help="API key.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Disconnect clients streamed, plain and queued. Exits with 1 if memory once came back too late."""
    screen = console()
    try:
        target = parse_target(url, key)
        plan = DisconnectPlan(target, model, count, crowd)

        def say(departure: Departure) -> None:
            if departure.number % 20 == 19 or departure.seconds is None or departure.seconds > within:
                screen.print(f"{departure.number + 1} of {count}: {departure.kind} {milliseconds(departure.seconds)}")

        async def leave() -> tuple[float, list[Departure]]:
            async with metrics_probe(target, model, gauge) as probe:
                return await disconnect_all(plan, probe, say)

        base, seen = asyncio.run(leave())
    except (TargetError, ProbeError, OSError) as error:
        screen.print(str(error), style="red")
        raise typer.Exit(2) from None
    if as_json:
        write_json({"base": base, "departures": [asdict(departure) for departure in seen]})
    else:
        screen.print(departures_table(base, seen))
    late = [departure for departure in seen if departure.seconds is None or departure.seconds > within]
    if late:
        screen.print(f"{len(late)} of {count} came back later than {within:g} s", style="red")
        raise typer.Exit(1)


if __name__ == "__main__":
    application()
