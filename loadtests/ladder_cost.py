"""`python -m loadtests.ladder_cost`: what the precision ladder costs a calm model, switched on and off in one running cluster."""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
import yaml

from cluster.config.in_force import in_force
from deployments.head.state import read_config_in_force, state_directory
from loadtests.bench_report import comparison_table, report_json
from loadtests.driver import LoadPlan
from loadtests.prompts import story_prompt
from loadtests.running_cluster import ClusterError, RunningCluster, pointsman
from loadtests.series import Arm, Series, UnfairError, comparisons_of, shape_for
from loadtests.show import console
from loadtests.targets import TargetError, parse_target

application = typer.Typer(add_completion=False, help=__doc__)


class LadderSwitch:
    """Switches the ladder of a running cluster on and off, by live changes of its config."""

    def __init__(self, state_dir: Path, folder: Path) -> None:
        """`folder` is for the configs. Raises `ClusterError`."""
        config = read_config_in_force(state_dir)
        if config is None:
            raise ClusterError(f"no cluster has its state in {state_dir}; start one with `pointsman up`")
        self._state_dir = state_dir
        self._files: dict[bool, Path] = {}
        for on in (False, True):
            document = in_force(config)
            document["precision"]["enabled"] = on
            self._files[on] = folder / f"ladder-{'on' if on else 'off'}.yaml"
            self._files[on].write_text(yaml.safe_dump(document, allow_unicode=True))
        self._was_on = config.precision.enabled

    def set(self, on: bool) -> None:
        """Switch it. Raises `ClusterError`."""
        done = pointsman("config", "apply", str(self._files[on]), "--state-dir", str(self._state_dir))
        if done.returncode != 0:
            raise ClusterError(f"`pointsman config apply` failed: {done.stderr.strip()[-400:]}")

    def restore(self) -> None:
        """As it was. Raises `ClusterError`."""
        self.set(self._was_on)


def _arm(on: bool, switch: LadderSwitch, cluster: RunningCluster, plan: LoadPlan) -> Arm:
    def prompt(seed: int, index: int) -> str:
        # The two arms share a server, and with it a prefix cache: their prompts begin differently.
        return f"({'b' if on else 'a'}) {story_prompt(seed, index)}"

    def prepare() -> None:
        switch.set(on)

    return Arm(f"ladder {'on' if on else 'off'}", replace(plan, prompt=prompt, ignore_eos=True), cluster.pids, prepare)


@application.command()
def ladder_cost(
    *,
    model: Annotated[str, typer.Option(help="Model to ask.")] = "dense",
    url: Annotated[str, typer.Option(help="A cluster that runs.")] = "http://127.0.0.1:8000",
    state_dir: Annotated[Path | None, typer.Option(help="The cluster's state directory.")] = None,
    pairs: Annotated[int, typer.Option(min=1, max=100, help="Alternating pairs.")] = 8,
    streams: Annotated[int, typer.Option(min=1, max=64, help="Streams at once; few enough to be calm.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 64,
    seconds: Annotated[float, typer.Option(min=1, help="Aim at runs of about this length.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Tokens a second, time to the first token and gaps with the ladder, over those without it."""
    screen = console()
    seed = int(time.time()) % 10_000_000 * 100_000
    folder = state_dir or state_directory(None)
    try:
        target = parse_target(url, None)
        cluster = RunningCluster(target.root, Path(), folder)
        cluster.wait_for(model, timeout_s=5.0)
        with tempfile.TemporaryDirectory() as made:
            switch = LadderSwitch(folder, Path(made))
            arms = [_arm(on, switch, cluster, LoadPlan(target, model, max_tokens=max_tokens)) for on in (False, True)]
            series = Series(arms[0], arms[1], screen.print)
            try:
                found = comparisons_of(series, [shape_for(streams, max_tokens, seconds)], pairs, seed)
            finally:
                switch.restore()
    except (TargetError, ClusterError, UnfairError, ValueError) as error:
        screen.print(str(error), style="red")
        raise typer.Exit(2) from None
    screen.print(comparison_table(f"ladder on over off, {model}", "off", "on", found))
    if as_json:
        settings: dict[str, object] = {"model": model, "streams": streams, "seed": seed, "warnings": series.warnings}
        sys.stdout.write(report_json(settings, series.pairs, found) + "\n")


if __name__ == "__main__":
    application()
