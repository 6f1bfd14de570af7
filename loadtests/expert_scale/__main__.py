"""`python -m loadtests.expert_scale`: replication by heat at the scale of a large model, against placements that stand still."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer

from deployments.engines.vllm_balancing import balance
from loadtests.expert_scale.arms import Arm, Everywhere, Policy, Still
from loadtests.expert_scale.plot import plot
from loadtests.expert_scale.report import FLOOR, POLICY, REPLICAS, STATIC, WHOLE, Case, markdown, report_json, table
from loadtests.expert_scale.run import Run, simulate
from loadtests.expert_scale.scene import Phase, Scene
from loadtests.expert_scale.traffic import DATA, Where, recorded, requests, spread_over
from loadtests.machine import cpu_model
from loadtests.show import console

application = typer.Typer(add_completion=False, help=__doc__)

CASES: Final = (Case(Where.MEASURED, 0.5), Case(Where.MEASURED, 0.7), Case(Where.APART, 0.7))
QUICK: Final = (Phase(40.0, None), Phase(20.0, "story"))


def arms(scene: Scene) -> dict[str, Callable[[], Arm]]:
    """What is compared: at equal memory, but for the floor."""
    static_pools = scene.shape.experts // scene.slots
    return {
        STATIC: lambda: Still(scene, STATIC, whole=False),
        WHOLE: lambda: Still(scene, WHOLE, whole=True),
        REPLICAS: lambda: Policy(scene, REPLICAS, static_pools, scene.copies, None),
        POLICY: lambda: Policy(scene, POLICY, scene.nodes, 1, balance),
        FLOOR: lambda: Everywhere(scene, FLOOR),
    }


def run_one(scene: Scene, case: Case, arm: str, data: Path, seed: int) -> Run:
    """One arm of a case, in a process of its own. Raises `ValueError`."""
    # One run on one core: two of them share the machine.
    told = recorded(data)
    kinds = sorted(told)
    spread = spread_over(told, scene.shape, case.where, seed)
    shares = np.stack([spread[kind] for kind in kinds])
    came = requests(scene, kinds, case.load * scene.ideal_tokens_per_s / scene.tokens, seed + 1)
    return simulate(scene, arms(scene)[arm](), came, shares, seed + 2, _say(case))


def _say(case: Case) -> Callable[[str], None]:
    return lambda text: console().print(f"{case.name}: {text}")


@application.command()
def expert_scale(
    *,
    load: Annotated[
        list[float] | None,
        typer.Option(min=0.05, max=2.0, help="Loads, as parts of what ideal nodes could do; default: 0.5 and 0.7."),
    ] = None,
    data: Annotated[Path, typer.Option(help="Recording of a real engine's experts.")] = DATA,
    seed: Annotated[int, typer.Option(min=0, help="Of requests, routes and where the hot experts are.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="A short run, to see that it works.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for results.")] = Path("out"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Static placement, whole-model replication and the policy under the same traffic, which concentrates on one kind of text and moves."""
    screen = console()
    scene = Scene(phases=QUICK) if quick else Scene()
    cases = [Case(where, part) for where in Where for part in load] if load else list(CASES)
    began = time.monotonic()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    names = list(arms(scene))
    try:
        with ProcessPoolExecutor(max_workers=max(1, min(2, os.cpu_count() or 1))) as workers:
            waiting: dict[Case, list[Future[Run]]] = {
                case: [workers.submit(run_one, scene, case, name, data, seed) for name in reversed(names)]
                for case in cases
            }
            found = {case: [one.result() for one in reversed(futures)] for case, futures in waiting.items()}
    except (ValueError, OSError) as error:
        screen.print(str(error), style="red")
        raise typer.Exit(2) from None
    took_s = time.monotonic() - began
    for case, runs in found.items():
        screen.print(table(scene, case, runs))
    settings: dict[str, object] = {"seed": seed, "quick": quick, "cpus": os.cpu_count(), "cpu_model": cpu_model()}
    text = report_json(scene, found, settings)
    out.mkdir(parents=True, exist_ok=True)
    plot(out / "expert_scale.png", scene, found)
    (out / "expert_scale.json").write_text(text + "\n", encoding="utf-8")
    command = " ".join(["python -m loadtests.expert_scale", *sys.argv[1:]])
    report = markdown(scene, found, command, "expert_scale.png", took_s)
    (out / "expert_scale.md").write_text(report, encoding="utf-8")
    screen.print(f"report: {out / 'expert_scale.md'}, picture: {out / 'expert_scale.png'}, {took_s:.0f} s")
    if as_json:
        sys.stdout.write(text + "\n")


if __name__ == "__main__":
    application()
