"""Measures what a lower KV precision costs a model in quality, and shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from deployments.cli import output
from deployments.cli.errors import CliError, ExitCode
from deployments.cli.measure_messages import Done, Figure, Quality, Task

if TYPE_CHECKING:
    from pathlib import Path

    from cluster.config.cluster import ClusterConfig
    from cluster.config.model import ModelConfig
    from cluster.config.precision import PrecisionConfig

_DIGITS: Final = 4
"""Of a share, in the config."""
_KL_DIGITS: Final = 3
"""That count, of a divergence, in the config."""


def measure_model(config: ClusterConfig, name: str, prompts: int, tokens: int) -> Done:
    """Measure the model `name` on an engine set up as the config says. Raises `CliError`."""
    from deployments.cli.measuring import run_task
    from deployments.cli.progress import Waiting

    model = _model(config, name)
    with Waiting(f"Measuring {name}") as waiting:
        path = _obtain(name, model, lambda text, fraction: waiting.part(name, text, fraction))
        task = Task(name, str(path), model.model_dump_json(), prompts, tokens)
        return run_task(task, lambda step: waiting.part(name, step.text, step.fraction))


def show(name: str, found: Done, bounds: PrecisionConfig, *, as_json: bool) -> None:
    """Print figures, and what to put into the config."""
    if as_json:
        told = msgspec.to_builtins(found)
        # How the child's messages are told apart.
        del told["type"]
        output.print_json({"model": name, **told})
        return
    table = output.table("KV", "agreement", "KL (nats)", "consistency", right=("agreement", "KL (nats)", "consistency"))
    rows = {**found.quality, f"{found.own} again": found.itself}
    for precision, quality in rows.items():
        table.add_row(precision, _share(quality.agreement), _nats(quality.kl), _share(quality.consistency))
    output.stdout().print(table)
    asked = found.itself
    output.remark(
        (
            f"{asked.prompts} prompts of up to {found.longest_prompt} tokens ({found.block_tokens} to a KV block), ",
            "dim",
        ),
        (f"{asked.positions} tokens of answers; against {found.own}; 95% intervals over prompts. ", "dim"),
        ("KL is a lower bound; tokens compared one by one carry ", "dim"),
        (", ".join(f"{quality.covered:.1%}" for quality in found.quality.values()) + " of the probability.", "dim"),
    )
    for precision, quality in found.quality.items():
        output.remark(_verdict(precision, quality, bounds))
    output.print_line(f"\nmodels:\n  {name}:\n    precision:\n      kv_quality:")
    for precision, quality in found.quality.items():
        output.print_line(f"        {precision}: {snippet(quality)}")


def snippet(quality: Quality) -> str:
    """The figures as the config takes them, in YAML."""
    agreement, consistency = (round(one.value, _DIGITS) for one in (quality.agreement, quality.consistency))
    # In plain digits: YAML 1.1 takes `1e-05` for text.
    exponent = f"{quality.kl.value:.{_KL_DIGITS - 1}e}".partition("e")[2]
    kl = f"{quality.kl.value:.{max(0, _KL_DIGITS - 1 - int(exponent))}f}"
    return f"{{agreement: {agreement}, kl: {kl}, consistency: {consistency}}}"


def _model(config: ClusterConfig, name: str) -> ModelConfig:
    from cluster.config.engine import EngineType

    model = config.models.get(name)
    if model is None:
        raise CliError(f"the config has no model {name}", f"Its models are {', '.join(config.models)}.", ExitCode.USAGE)
    engine = model.engine.type
    if engine is not EngineType.VLLM:
        raise CliError(
            f"{name} has no KV cache to measure: its engine is of type {engine.value}",
            "Models whose engine is of type vllm have one; `pointsman models` lists the types.",
            ExitCode.USAGE,
        )
    return model


def _obtain(name: str, model: ModelConfig, on_step: Callable[[str, float], None]) -> Path:
    from deployments.cli.obtain import obtain_models

    if model.source is None:
        raise CliError(f"{name} has no source", "Give it one in the config.", ExitCode.USAGE)
    paths, failed = obtain_models({name: model.source}, lambda work: on_step(work.message, work.fraction))
    if failed:
        raise CliError(f"{name} cannot be had: {failed[0].problem}", failed[0].remedy)
    return paths[name]


def _verdict(precision: str, quality: Quality, bounds: PrecisionConfig) -> str:
    failed = []
    if quality.agreement.value < bounds.min_agreement:
        failed.append(f"agreement is below precision.min_agreement {bounds.min_agreement:g}")
    if quality.kl.value > bounds.max_kl:
        failed.append(f"KL is above precision.max_kl {bounds.max_kl:g}")
    return f"{precision}: {' and '.join(failed) or 'good enough for this config'}" + (
        ", so the precision ladder would not use it" if failed else ""
    )


def _share(figure: Figure) -> str:
    return f"{figure.value:.1%} [{figure.low:.1%}, {figure.high:.1%}]"


def _nats(figure: Figure) -> str:
    return f"{figure.value:.2g} [{figure.low:.2g}, {figure.high:.2g}]"
