"""Which models a config needs, which of them are there, and getting the rest."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from deployments.cli.build_messages import Building, BuildMessage, Built, Job, Refused
from deployments.cli.errors import CliError
from deployments.processes import OWNER_VARIABLE

if TYPE_CHECKING:
    from cluster.config.cluster import ClusterConfig

OnBuilding = Callable[[Building], None]

_NOISE_CHARS = 1500


@dataclass(frozen=True, slots=True)
class Failed:
    """A model that cannot be had, and what to do about it."""

    model: str
    problem: str
    remedy: str


def sources_of(config: ClusterConfig) -> dict[str, str]:
    """Source by name, of the models that have files; external and simulated ones have none."""
    from cluster.config.engine import EngineType

    without = (EngineType.EXTERNAL, EngineType.SIMULATED)
    return {
        name: model.source
        for name, model in config.models.items()
        if model.source is not None and model.engine.type not in without
    }


def find_ready(source: str) -> Path | None:
    """The folder of a model that needs no work, or None. Takes milliseconds and opens no connection.

    Raises `ModelError` for a source that can never be had.
    """
    from deployments.models import recipes, store
    from deployments.models.sources import cache_root, resolve

    scheme, _, rest = source.partition(":")
    if scheme == "path":
        return resolve(source, None, lambda _text, _done: None)
    if scheme == "embedded" and rest in recipes.RECIPES:
        folder = store.published(cache_root() / "models", rest, recipes.recipe_hash(rest))
        return folder if store.is_intact(folder) else None
    return None


def obtain_models(sources: Mapping[str, str], on_building: OnBuilding) -> tuple[dict[str, Path], tuple[Failed, ...]]:
    """The folder of each model, and those that cannot be had. Builds and downloads in a child process."""
    from deployments.models.errors import ModelError

    paths: dict[str, Path] = {}
    failed: list[Failed] = []
    missing: dict[str, str] = {}
    for model, source in sources.items():
        try:
            ready = find_ready(source)
        except ModelError as error:
            failed.append(Failed(model, error.problem, error.remedy))
            continue
        if ready is None:
            missing[model] = source
        else:
            paths[model] = ready
    if missing:
        built, refused = run_job(Job(missing), on_building)
        paths |= built
        failed += refused
    return paths, tuple(failed)


def run_job(job: Job, on_building: OnBuilding) -> tuple[dict[str, Path], tuple[Failed, ...]]:
    """Run the child on a job; it ends with this process. Raises `CliError` if it breaks."""
    paths: dict[str, Path] = {}
    failed: list[Failed] = []
    with tempfile.TemporaryFile() as noise:
        with subprocess.Popen(
            [sys.executable, "-m", "deployments.cli.build_child", msgspec.json.encode(job).decode()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=noise,
            env={**os.environ, OWNER_VARIABLE: str(os.getpid())},
        ) as child:
            try:
                for message in _messages(child.stdout):
                    if isinstance(message, Building):
                        on_building(message)
                    elif isinstance(message, Built):
                        paths[message.model] = Path(message.path)
                    else:
                        failed.append(Failed(message.model, message.problem, message.remedy))
            except BaseException:
                # On Ctrl-C, too: what is half done is removed by the next build.
                child.kill()
                raise
        status = child.returncode
        if len(paths) + len(failed) < len(job.sources):
            raise CliError(
                f"the process that builds models ended with status {status}:\n{_tail(noise)}",
                "Status -9 is often a lack of memory. Try `pointsman models build` again.",
            )
    return paths, tuple(failed)


def _messages(stream: IO[bytes] | None) -> Iterator[BuildMessage]:
    decoder: msgspec.json.Decoder[BuildMessage] = msgspec.json.Decoder(Building | Built | Refused)
    for line in stream or ():
        yield decoder.decode(line)


def _tail(noise: IO[bytes]) -> str:
    noise.seek(0)
    return noise.read().decode("utf-8", "replace").strip()[-_NOISE_CHARS:] or "(it said nothing)"
