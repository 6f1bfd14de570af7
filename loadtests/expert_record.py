"""`python -m loadtests.expert_record`: which experts of the sparse model three kinds of text use, recorded for simulations."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cluster.config.mistakes import ConfigError
from cluster.config.model import ModelConfig
from cluster.experts.load import ExpertLoad
from deployments.engines.protocol import Endpoint, EngineRequest, EngineStartError
from deployments.engines.vllm_engine import VllmEngine
from deployments.engines.vllm_experts import LOAD_PERIOD_S
from deployments.models.errors import ModelError
from deployments.models.sources import resolve
from loadtests.configured import vllm_model
from loadtests.intents import labelled
from loadtests.kv_switching import NAME, SwitchError, running
from loadtests.machine import cpu_model
from loadtests.prompts import story_prompt
from loadtests.questions import items
from loadtests.show import console

application = typer.Typer(add_completion=False, help=__doc__)

DATA: Final = Path(__file__).parent / "data" / "expert_heat.json"
PATIENCE_S: Final = 10.0


def texts(count: int, seed: int) -> dict[str, list[str]]:
    """So many prompts of each kind: stories, code, and questions with short answers. At most 40 are of code."""
    code = [one.text for one in labelled() if one.intent == "code"]
    return {
        "story": [story_prompt(seed, number) for number in range(count)],
        "code": code[:count],
        "questions": [one.question for one in items(count, seed)],
    }


async def record(
    engine: VllmEngine, prompts: dict[str, list[str]], tokens: int, say: Callable[[str], None]
) -> ExpertLoad:
    """Serve all prompts, kind by kind, and take what the engine counted. Raises `SwitchError`."""
    if blockers := engine.expert_blockers:
        raise SwitchError(f"this engine does not tell which experts it uses: {'; '.join(blockers)}")
    asked = 0
    for kind, of_kind in prompts.items():
        requests: list[EngineRequest] = []
        for text in of_kind:
            body: Any = {
                "model": NAME,
                "messages": [{"role": "user", "content": text}],
                "max_tokens": tokens,
                "temperature": 0,
            }
            requests.append(EngineRequest(f"record-{kind}-{len(requests)}", Endpoint.CHAT, body, traffic=kind))
        replies = await asyncio.gather(*[engine.run(one, lambda _: None) for one in requests])
        failed = [reply.status for reply in replies if reply.status != 200]
        if failed:
            raise SwitchError(f"{len(failed)} requests failed, the first with status {failed[0]}")
        asked += sum(reply.experts.tokens for reply in replies if reply.experts is not None)
        say(f"{kind}: {len(of_kind)} prompts, {asked} tokens so far")
    return await _load(engine, asked)


async def _load(engine: VllmEngine, tokens: int) -> ExpertLoad:
    """What it counted, once it tells of all of these tokens."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        await asyncio.sleep(LOAD_PERIOD_S)
        await engine.heartbeat()
        load = engine.expert_load()
        if load is None:
            continue
        told = sum(int(counts.sum()) for counts in load.traffic().values())
        if told >= tokens * load.shape.layers * load.shape.top_k:
            return load
    raise SwitchError(f"the engine did not tell of its experts within {PATIENCE_S:g} s")


def document(load: ExpertLoad, settings: dict[str, object]) -> dict[str, object]:
    """The recording, as `loadtests.expert_scale` reads it."""
    shape = load.shape
    return {
        "settings": settings,
        "layers": shape.layers,
        "experts": shape.experts,
        "top_k": shape.top_k,
        "tokens": {name: counts.tolist() for name, counts in sorted(load.traffic().items())},
    }


async def _run(
    folder: Path, model: ModelConfig, prompts: dict[str, list[str]], tokens: int, say: Callable[[str], None]
) -> ExpertLoad:
    async with running(folder, model) as engine:
        return await record(engine, prompts, tokens, say)


@application.command()
def expert_record(
    *,
    config: Annotated[Path, typer.Option(help="Config that the model is taken from.")] = Path(
        "infra/clusters/local.yaml"
    ),
    model: Annotated[str, typer.Option(help="Sparse model to record.")] = "sparse",
    prompts: Annotated[int, typer.Option(min=1, max=40, help="Prompts of each kind.")] = 32,
    max_tokens: Annotated[int, typer.Option(min=1, max=512, help="Tokens of each answer at most.")] = 48,
    seed: Annotated[int, typer.Option(help="Series of prompts.")] = 1,
    out: Annotated[Path, typer.Option(help="File to write.")] = DATA,
) -> None:
    """Start the sparse model in this process, let it answer three kinds of prompts, and write its tokens by kind, layer and expert."""
    screen = console()
    try:
        _, chosen = vllm_model(config, model)
        folder = resolve(chosen.source or "", None, lambda text, done: screen.print(f"{text} {done:.0%}"))
        load = asyncio.run(_run(folder, chosen, texts(prompts, seed), max_tokens, screen.print))
    except (ConfigError, ModelError, EngineStartError, SwitchError, ValueError) as error:
        screen.print(str(error), style="red")
        raise typer.Exit(2) from None
    settings: dict[str, object] = {
        "model": chosen.source,
        "prompts": prompts,
        "max_tokens": max_tokens,
        "seed": seed,
        "cpus": os.cpu_count(),
        "cpu_model": cpu_model(),
    }
    out.write_text(json.dumps(document(load, settings), separators=(",", ":")) + "\n", encoding="utf-8")
    screen.print(f"written to {out}")


if __name__ == "__main__":
    application()
