"""What the simulation showed: tables on the terminal, a report, all figures as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from rich.table import Table

from loadtests.expert_scale.run import Run
from loadtests.expert_scale.scene import Scene
from loadtests.expert_scale.traffic import Where

STATIC: Final = "static"
WHOLE: Final = "whole model"
REPLICAS: Final = "replicas only"
POLICY: Final = "policy"
FLOOR: Final = "every expert everywhere"
"""No arm to choose: the floor, at many times the memory."""
GOAL: Final = 0.5
"""Part of the static placement's p95 that was asked for, at most."""
SOON_S: Final = 10.0
"""Within which a hot expert is to have its second replica."""


@dataclass(frozen=True, slots=True)
class Case:
    """What the arms of one comparison have in common."""

    where: Where
    load: float
    """Of the traffic, as a part of `Scene.ideal_tokens_per_s`."""

    @property
    def name(self) -> str:
        """For people."""
        return f"heat {self.where}, load {self.load:.0%}"


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run. Latencies are of whole requests that came after the warm-up."""

    arm: str
    requests: int
    cut_off: int
    p50_s: float
    p95_s: float
    p99_s: float
    step_s: float
    """Mean over the seconds in which something ran."""
    uneven: float
    """Largest load of a replica in a layer over the mean one, mean over layers and time."""
    held_gib: float
    """Weights in memory, mean over time."""
    held_most_gib: float
    moves: int
    replica_loads: int
    changes: int
    hot: int
    """Pairs that became hot."""
    soon: float
    """Share of them that had a second replica within `SOON_S`."""
    second_s: float | None
    """Median seconds until then, of all that became hot; None: half of them never had."""


Found = Mapping[Case, Sequence[Run]]


def figures(scene: Scene, run: Run) -> Figures:
    """The figures of a run."""
    p50, p95, p99 = (float(value) for value in np.quantile(run.latency_s, [0.5, 0.95, 0.99]))
    busy = [second for second in run.seconds if second.running]
    gib = scene.node_pairs * scene.pair_bytes / 2**30
    # Between a finite and an infinite one it is the infinite one.
    middle = float(np.quantile(run.second_s, 0.5, method="higher")) if len(run.second_s) else np.inf
    return Figures(
        arm=run.arm,
        requests=len(run.latency_s),
        cut_off=run.cut_off,
        p50_s=p50,
        p95_s=p95,
        p99_s=p99,
        step_s=float(np.mean([second.step_s for second in busy])),
        uneven=float(np.mean([second.uneven for second in busy])),
        held_gib=gib * float(np.mean([second.held for second in run.seconds])),
        held_most_gib=gib * max(second.held for second in run.seconds),
        moves=run.moves,
        replica_loads=run.replica_loads,
        changes=run.changes,
        hot=len(run.second_s),
        soon=float((run.second_s <= SOON_S).mean()) if len(run.second_s) else 0.0,
        second_s=middle if np.isfinite(middle) else None,
    )


def rows(all_of: Sequence[Figures]) -> list[tuple[str, list[str]]]:
    """A row per measure, a cell per arm."""
    return [
        ("latency p50", [f"{one.p50_s:.1f} s" for one in all_of]),
        ("latency p95", [f"{one.p95_s:.1f} s" for one in all_of]),
        ("latency p99", [f"{one.p99_s:.1f} s" for one in all_of]),
        ("cut off by the deadline", [f"{one.cut_off} of {one.requests}" for one in all_of]),
        ("step of a trunk, mean", [f"{one.step_s * 1000:.0f} ms" for one in all_of]),
        ("largest over mean load in a layer", [f"{one.uneven:.2f}" for one in all_of]),
        ("weights in memory, mean (most)", [f"{one.held_gib:.0f} ({one.held_most_gib:.0f}) GiB" for one in all_of]),
        ("pairs loaded by moves", [str(one.moves) for one in all_of]),
        ("pairs loaded by replicas", [str(one.replica_loads) for one in all_of]),
        ("changes of replicas", [str(one.changes) for one in all_of]),
        ("pairs that became hot", [str(one.hot) if one.arm in {REPLICAS, POLICY} else "-" for one in all_of]),
        (
            f"  of them with a second replica in {SOON_S:.0f} s",
            [f"{one.soon:.0%}" if one.hot else "-" for one in all_of],
        ),
        ("  median until then", ["-" if one.second_s is None else f"{one.second_s:.0f} s" for one in all_of]),
    ]


def verdict(all_of: Sequence[Figures]) -> str:
    """The policy's p95 against the static placement's, and the goal."""
    by_arm = {one.arm: one for one in all_of}
    if not {STATIC, POLICY} <= by_arm.keys():
        return ""
    ratio = by_arm[POLICY].p95_s / by_arm[STATIC].p95_s
    met = "reached" if ratio <= GOAL else "missed"
    floor = (
        f"; no placement could do better than {by_arm[FLOOR].p95_s / by_arm[STATIC].p95_s:.2f}"
        if FLOOR in by_arm
        else ""
    )
    return f"p95 with the policy over static: {ratio:.2f} ({ratio - 1:+.0%}){floor}; goal {GOAL:.2f}: {met}"


def table(scene: Scene, case: Case, runs: Sequence[Run]) -> Table:
    """One case on the terminal."""
    all_of = [figures(scene, run) for run in runs]
    shown = Table(title=case.name, title_justify="left", caption=verdict(all_of), caption_justify="left")
    shown.add_column("measure")
    for one in all_of:
        shown.add_column(one.arm, justify="right")
    for name, cells in rows(all_of):
        shown.add_row(name, *cells)
    return shown


def markdown(scene: Scene, found: Found, command: str, picture: str, took_s: float) -> str:
    """The whole report."""
    shape = scene.shape
    lines = [
        "# Expert pools at scale, simulated",
        "",
        (
            f"`{command}`, {took_s:.0f} s. {shape.layers} layers of {shape.experts} experts, top-{shape.top_k}; {scene.nodes} nodes "
            f"with {scene.slots} experts of each layer, {scene.nodes * scene.node_pairs * scene.pair_bytes / 2**30:.0f} GiB of "
            f"weights in all arms at most; {scene.trunks} trunks. A load of 100% would be {scene.ideal_tokens_per_s:.0f} tokens/s."
        ),
        "",
        f"![Steps, unevenness, requests and latencies over time]({picture})",
    ]
    for case, runs in found.items():
        all_of = [figures(scene, run) for run in runs]
        lines += ["", f"## {case.name}", "", "| measure | " + " | ".join(one.arm for one in all_of) + " |"]
        lines.append("| --- " * (len(all_of) + 1) + "|")
        lines += [f"| {name.strip()} | " + " | ".join(cells) + " |" for name, cells in rows(all_of)]
        if told := verdict(all_of):
            lines += ["", told + "."]
    return "\n".join(lines) + "\n"


def report_json(scene: Scene, found: Found, settings: dict[str, object]) -> str:
    """Everything that was set and measured, second by second."""
    document = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "settings": settings | {"scene": asdict(scene)},
        "cases": [
            {
                "heat": case.where,
                "load": case.load,
                "arms": [asdict(figures(scene, run)) for run in runs],
                "seconds": {run.arm: [asdict(second) for second in run.seconds] for run in runs},
            }
            for case, runs in found.items()
        ],
    }
    return json.dumps(document, indent=1)
