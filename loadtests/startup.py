"""`python -m loadtests.startup`: how long a cluster takes to answer, and how much memory it holds."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cluster.config.base import Kind
from cluster.config.cluster import ClusterConfig
from cluster.config.load import parse_config
from cluster.config.mistakes import ConfigError
from deployments.head.state import read_state
from deployments.processes import proportional_memory
from loadtests.running_cluster import pointsman
from loadtests.show import console, write_json
from loadtests.starts import processes_of_cluster
from loadtests.stats import median

_GIB = 2**30

application = typer.Typer(add_completion=False, help=__doc__)


@dataclass(frozen=True, slots=True)
class Startup:
    """One start. Seconds from the command until a real request to a model was answered."""

    answered_s: dict[str, float]
    """By model; one that never answered is not in it."""
    command_s: float
    """Until `pointsman up` returned."""
    pss_bytes: int
    """Proportional memory of all processes of the cluster, once all models had answered."""
    processes: int

    @property
    def first_s(self) -> float:
        """Until the first model answered."""
        return min(self.answered_s.values())

    @property
    def all_s(self) -> float:
        """Until the last model answered."""
        return max(self.answered_s.values())


class StartupError(RuntimeError):
    """The cluster did not come up."""


def start_once(config: ClusterConfig, path: Path, timeout_s: float) -> Startup:
    """Start with a fresh state directory, ask each model until it answers, measure, stop. Raises `StartupError`."""
    url = f"http://{config.ingress.host}:{config.ingress.port}"
    with tempfile.TemporaryDirectory(prefix="pointsman-startup-") as folder:
        state_dir = Path(folder)
        began = time.monotonic()
        command = [sys.executable, "-m", "deployments.cli", "up", "--config", str(path), "--state-dir", folder]
        with (state_dir / "up.out").open("wb") as output:
            up = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            answered = _ask_all(config, url, up, began, timeout_s)
            code = up.wait(timeout=timeout_s)
            command_s = time.monotonic() - began
            missing = set(config.models) - set(answered)
            if missing or code != 0:
                tail = (state_dir / "up.out").read_text(errors="replace").strip()[-600:]
                raise StartupError(f"not all models came up (missing: {', '.join(sorted(missing)) or 'none'}): {tail}")
            processes = processes_of_cluster(read_state(state_dir))
            memory = proportional_memory(seen.pid for seen in processes)
        finally:
            if up.poll() is None:
                up.terminate()
                up.wait(timeout=60.0)
            pointsman("down", "--state-dir", folder)
    return Startup(answered, command_s, memory, len(processes))


def _ask_all(
    config: ClusterConfig, url: str, up: subprocess.Popen[bytes], began: float, timeout_s: float
) -> dict[str, float]:
    """Ask every model that has not answered yet, four times a second."""
    answered: dict[str, float] = {}
    while len(answered) < len(config.models) and time.monotonic() - began < timeout_s:
        if up.poll() not in (None, 0):
            break
        for name, model in config.models.items():
            if name not in answered and _answers(url, name, model.kind):
                answered[name] = time.monotonic() - began
        time.sleep(0.25)
    return answered


def _answers(url: str, model: str, kind: Kind) -> bool:
    path = "embeddings" if kind is Kind.ENCODER else "chat/completions"
    body: dict[str, object] = {"model": model}
    if kind is Kind.ENCODER:
        body["input"] = "hello"
    else:
        body |= {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 1}
    request = urllib.request.Request(  # noqa: S310 - the address of our own cluster
        f"{url}/v1/{path}", data=json.dumps(body).encode(), headers={"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=20.0) as response:  # noqa: S310
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def startups_table(seen: list[Startup]) -> Table:
    """One row per start, and their medians."""
    table = Table(title="from the command to answers", title_justify="left")
    for name in ("run", "first model", "all models", "command returned", "PSS", "processes"):
        table.add_column(name, justify="right")
    for number, one in enumerate(seen):
        table.add_row(
            str(number + 1),
            f"{one.first_s:.1f} s",
            f"{one.all_s:.1f} s",
            f"{one.command_s:.1f} s",
            f"{one.pss_bytes / _GIB:.2f} GiB",
            str(one.processes),
        )
    table.add_row(
        "median",
        f"{median([one.first_s for one in seen]):.1f} s",
        f"{median([one.all_s for one in seen]):.1f} s",
        f"{median([one.command_s for one in seen]):.1f} s",
        f"{median([float(one.pss_bytes) for one in seen]) / _GIB:.2f} GiB",
        "",
    )
    return table


@application.command()
def startup(
    *,
    config: Annotated[Path, typer.Option(help="Config of the cluster.")] = Path("infra/clusters/local.yaml"),
    runs: Annotated[int, typer.Option(min=1, max=50, help="Starts.")] = 3,
    timeout: Annotated[float, typer.Option(help="Seconds that a start may take.")] = 300.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Start the cluster a few times and print the medians. Models have to be built before."""
    screen = console()
    try:
        parsed = parse_config(config.read_text(), str(config))
        seen = []
        for number in range(runs):
            one = start_once(parsed, config, timeout)
            seen.append(one)
            screen.print(f"{number + 1} of {runs}: first {one.first_s:.1f} s, all {one.all_s:.1f} s")
    except (OSError, ConfigError, StartupError) as error:
        screen.print(str(error), style="red")
        raise typer.Exit(2) from None
    if as_json:
        write_json([asdict(one) for one in seen])
    else:
        screen.print(startups_table(seen))


if __name__ == "__main__":
    application()
