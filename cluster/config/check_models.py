"""Checks on one model of the config."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cluster.config.base import EMBEDDING_ROLE, Kind
from cluster.config.engine import EngineType
from cluster.config.host import url_mistake
from cluster.config.mistakes import Mistake
from cluster.config.model import ModelConfig
from cluster.config.pools import check_pools

_GENERATING: Final = frozenset({EngineType.VLLM, EngineType.SIMULATED})
ENGINES_OF_KIND: Final = {
    Kind.DENSE: _GENERATING,
    Kind.SPARSE: _GENERATING,
    Kind.MINI: _GENERATING,
    Kind.ENCODER: frozenset({EngineType.ENCODER, EngineType.SIMULATED}),
    Kind.EXTERNAL: frozenset({EngineType.EXTERNAL}),
}

# The simulated engine stands in for vLLM: a config keeps vLLM's settings when it is tried out on it.
SETTINGS_OF_ENGINE: Final = {
    EngineType.ENCODER: frozenset({"type", "max_model_len", "max_num_seqs"}),
    EngineType.EXTERNAL: frozenset({"type", "max_model_len"}),
}


def _check_calibration(path: str, model: ModelConfig) -> Iterator[Mistake]:
    for position in range(1, len(model.calibration)):
        before, point = model.calibration[position - 1 : position + 1]
        if point[0] < before[0] or point[1] < before[1]:
            yield Mistake(
                f"{path}.calibration.{position}",
                "this point lies below the one before it, but a surer answer cannot be right less often",
                "fit them anew with `python -m loadtests.calibrate`",
            )


def check_model(path: str, model: ModelConfig) -> Iterator[Mistake]:
    """Mistakes of one model; `path` is that of the model."""
    yield from _check_source(path, model)
    yield from _check_roles(path, model)
    yield from _check_engine(path, model)
    yield from _check_replicas(f"{path}.replicas", model)
    yield from _check_calibration(path, model)
    yield from check_pools(path, model)


def _check_source(path: str, model: ModelConfig) -> Iterator[Mistake]:
    if model.kind is Kind.EXTERNAL:
        if model.source is not None:
            yield Mistake(f"{path}.source", "an external model has no source of its own", "leave it out")
        if model.upstream is None:
            yield Mistake(f"{path}.upstream", "an external model needs an upstream", "add base_url and model")
        elif mistake := url_mistake(model.upstream.base_url):
            yield Mistake(f"{path}.upstream.base_url", *mistake)
        return
    if model.source is None:
        yield Mistake(
            f"{path}.source", "the model has no source", "write embedded:NAME, hf:ORG/NAME@REVISION or path:/DIR"
        )
    if model.upstream is not None:
        yield Mistake(
            f"{path}.upstream", "only a model of kind external has an upstream", "leave it out or change kind"
        )


def _check_roles(path: str, model: ModelConfig) -> Iterator[Mistake]:
    for index, role in enumerate(model.roles):
        if role in model.roles[:index]:
            yield Mistake(f"{path}.roles.{index}", f"the role {role} stands here twice", "leave one out")
        elif model.kind is Kind.ENCODER and role != EMBEDDING_ROLE:
            yield Mistake(f"{path}.roles.{index}", "an encoder has the role embedding alone", "leave this one out")
        elif model.kind is not Kind.ENCODER and role == EMBEDDING_ROLE:
            yield Mistake(
                f"{path}.roles.{index}", "only an encoder has the role embedding", "leave it out or change kind"
            )


def _check_engine(path: str, model: ModelConfig) -> Iterator[Mistake]:
    engine = model.engine
    where = f"{path}.engine"
    if engine.type not in ENGINES_OF_KIND[model.kind]:
        fitting = " or ".join(sorted(ENGINES_OF_KIND[model.kind]))
        yield Mistake(f"{where}.type", f"a model of kind {model.kind} runs on {fitting}", "change it or leave it out")
        return
    taken = SETTINGS_OF_ENGINE.get(engine.type)
    for field in sorted(engine.model_fields_set - taken) if taken is not None else ():
        if field != "simulated" and getattr(engine, field) is not None:
            yield Mistake(
                f"{where}.{field}", f"an engine of type {engine.type} does not have this setting", "leave it out"
            )
    if engine.simulated is not None and engine.type is not EngineType.SIMULATED:
        yield Mistake(f"{where}.simulated", "this is for an engine of type simulated", "leave it out or change type")
    yield from _check_simulated_experts(f"{where}.simulated.experts", model)
    if engine.expert_parallel and model.kind is not Kind.SPARSE:
        yield Mistake(f"{where}.expert_parallel", "only a sparse model has experts", "leave it out or change kind")
    if engine.expert_parallel and engine.tensor_parallel_size == 1:
        yield Mistake(
            f"{where}.expert_parallel", "one GPU has nobody to share experts with", "raise tensor_parallel_size"
        )
    length = engine.max_model_len
    if engine.kv_window_tokens is not None and length is not None and engine.kv_window_tokens > length:
        yield Mistake(f"{where}.kv_window_tokens", "the window is longer than max_model_len", "lower it")
    batched = engine.max_num_batched_tokens
    if batched is not None and batched < engine.max_num_seqs:
        yield Mistake(
            f"{where}.max_num_batched_tokens", "a step must have room for a token of each sequence", "raise it"
        )


def _check_simulated_experts(path: str, model: ModelConfig) -> Iterator[Mistake]:
    experts = model.engine.simulated.experts if model.engine.simulated is not None else None
    if experts is None:
        return
    if model.kind is not Kind.SPARSE:
        yield Mistake(path, "only a sparse model has experts", "leave it out or change kind")
    if experts.top_k > experts.experts:
        yield Mistake(f"{path}.top_k", "a layer does not have so many experts", "lower it or raise experts")


def _check_replicas(path: str, model: ModelConfig) -> Iterator[Mistake]:
    replicas = model.replicas
    if replicas.min > replicas.max:
        yield Mistake(f"{path}.min", "this is more than max", "lower it or raise max")
    if replicas.target_ongoing_requests > replicas.max_ongoing_requests:
        yield Mistake(f"{path}.target_ongoing_requests", "this is more than max_ongoing_requests", "lower it")
    split = model.engine.tensor_parallel_size
    if model.engine.type is EngineType.VLLM and replicas.gpus not in (0, split):
        # vLLM takes nine tenths of a GPU's memory, so a second engine on the same one would not start.
        yield Mistake(f"{path}.gpus", f"this engine computes on {_gpus(split)}, whole", f"set it to {split}")
    elif split > 1 and replicas.gpus != split:
        yield Mistake(f"{path}.gpus", f"a replica split over {split} GPUs reserves {split}", f"set it to {split}")
    if replicas.cpu_cores is None:
        return
    cores = cores_of(replicas.cpu_cores)
    if not cores:
        yield Mistake(f"{path}.cpu_cores", "a range of cores runs backwards", "write the smaller number first")
    elif len(cores) < replicas.omp_threads:
        yield Mistake(f"{path}.omp_threads", "there are more threads than cores in cpu_cores", "lower it or add cores")


def _gpus(count: int) -> str:
    return "one GPU" if count == 1 else f"{count} GPUs"


def cores_of(binding: str) -> frozenset[int]:
    """The core numbers in a binding such as `0-2,5`; empty when a range runs backwards."""
    cores: set[int] = set()
    for part in binding.split(","):
        first, _, last = part.partition("-")
        span = range(int(first), int(last or first) + 1)
        if not span:
            return frozenset()
        cores.update(span)
    return frozenset(cores)
