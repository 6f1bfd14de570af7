"""`python -m deployments.cli.measure_child TASK`: measures a model on an engine of its own and reports on stdout.

A process of its own, because an engine sets the environment of its process and prints as it likes.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from deployments.cli.child import begin
from deployments.cli.measure_messages import Done, Failed, MeasureMessage, Step, Task

if TYPE_CHECKING:
    from cluster.config.engine import EngineConfig
    from cluster.config.model import ModelConfig
    from deployments.models.kv_prompts import Prompt

Tell = Callable[[MeasureMessage], None]


def main() -> int:
    """Measure; exit status 1 if it did not come to figures."""
    messages = begin()
    task = msgspec.json.decode(sys.argv[1], type=Task)

    def tell(message: MeasureMessage) -> None:
        os.write(messages, msgspec.json.encode(message) + b"\n")

    told = _measure(task, tell)
    tell(told)
    return 1 if isinstance(told, Failed) else 0


def _measure(task: Task, tell: Tell) -> Done | Failed:
    from cluster.config.model import ModelConfig
    from deployments.models.kv_prompts import make_prompts

    model = ModelConfig.model_validate_json(task.config)
    tell(Step("gathering prompts"))
    try:
        template = model.engine.chat_template
        own = Path(template).read_text(encoding="utf-8") if template is not None else None
        prompts = make_prompts(Path(task.path), task.prompts, _room(model.engine, task.tokens), own)
    except (ValueError, OSError) as error:
        # Too little text, or a tokenizer that transformers cannot load.
        return Failed(
            f"there are no prompts to measure {task.model} with: {error}", "Ask fewer, or for shorter answers"
        )
    tell(Step("starting its engine"))
    return asyncio.run(_ask(task, model, prompts, tell))


async def _ask(task: Task, model: ModelConfig, prompts: list[Prompt], tell: Tell) -> Done | Failed:
    from deployments.engines.protocol import EngineDeadError, EngineStartError
    from deployments.models.errors import ModelError
    from deployments.models.kv_measurement import measure
    from deployments.replica.engines import vllm_engine

    def on_step(text: str, fraction: float) -> None:
        tell(Step(text, fraction))

    engine = vllm_engine(task.model, Path(task.path), model)
    try:
        await engine.start()
        found = await measure(engine, task.model, prompts, task.tokens, on_step)
    except ModelError as error:
        return Failed(error.problem, error.remedy)
    except (EngineStartError, EngineDeadError) as error:
        return Failed(str(error), "A lack of memory is often the reason; a running cluster takes some")
    finally:
        await engine.close()
    return msgspec.convert(found, Done, from_attributes=True)


def _room(engine: EngineConfig, tokens: int) -> int | None:
    """Tokens of prompt that leave room for an answer, and for one token after it."""
    bounds = [bound for bound in (engine.max_model_len, engine.kv_window_tokens) if bound is not None]
    return min(bounds) - tokens - 1 if bounds else None


if __name__ == "__main__":
    sys.exit(main())
