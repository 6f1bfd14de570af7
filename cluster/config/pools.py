"""A sparse model whose experts live in pools of their own. See docs/expert-pools.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from cluster.config.base import Kind, Section
from cluster.config.mistakes import Mistake

if TYPE_CHECKING:
    from cluster.config.model import ModelConfig


class PoolsConfig(Section):
    """How many pools share a model's experts, how many replicas each has, and how long its engine waits for them."""

    count: int = Field(2, ge=1, le=256)
    """Pools (a number) that share out the experts of every layer."""
    min: int = Field(1, ge=1, le=64)
    """Replicas of each pool at least, but of one that is parked."""
    max: int = Field(2, ge=1, le=64)
    """Replicas of each pool at most."""
    memory_bytes: int | None = Field(None, ge=1, le=2**50)
    """Bytes that the weights of all replicas of all pools may take together; null: no bound but `max`."""
    cpus: float = Field(0.25, ge=0, le=4096)
    """CPU cores that Ray reserves for a replica of a pool."""
    cpu_cores: str | None = Field(None, pattern=r"^[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?){0,63}$")
    """Core numbers that its threads are bound to, for example `0` or `0-1`; null: not bound."""
    threads: int = Field(1, ge=1, le=1024)
    """Threads that a replica computes with."""
    quota_pairs_per_s: float | None = Field(None, gt=0, le=1e12)
    """Pairs of token and expert a second that a replica computes at most, as if its device did no more; null: what it can."""
    high: float = Field(0.7, gt=0, le=1)
    """Share of what a pool's replicas can compute, 0 to 1, above which it gains one.

    An engine waits for its pools, so a lone replica seldom gets more than nine tenths of what it could compute.
    """
    low: float = Field(0.3, ge=0, lt=1)
    """Share, 0 to 1, below which it loses one; less than `high`."""
    dwell_s: float = Field(30.0, ge=0, le=86_400)
    """Seconds for which it must stay below `low`, and between gaining and losing a replica."""
    half_life_s: float = Field(2.0, gt=0, le=3600)
    """Seconds after which a token counts half in what a pool is said to get."""
    steady_half_life_s: float = Field(60.0, gt=0, le=86_400)
    """Seconds after which it counts half in what decides which experts live together."""
    idle_s: float | None = Field(None, ge=1, le=86_400)
    """Seconds without a token after which a pool is parked, without a replica, until one comes; null: none is."""
    loads: int | None = Field(None, ge=1, le=2**40)
    """Pairs of layer and expert whose weights may be loaded within ten seconds; null: twice as many as the model has."""
    uneven: float | None = Field(1.15, gt=1, le=256)
    """Largest load of a replica in a layer over the mean one, a number, above which experts change their pools; null: they never do.

    And only while some pool is used by more than `low`: what hardly comes need not be spread evenly.
    """
    answer_s: float = Field(2.0, gt=0, le=600)
    """Seconds that a replica may take to answer before its part is sent to another one."""
    outage_s: float = Field(20.0, gt=0, le=3600)
    """Seconds that the engine waits where no expert of a layer can be reached, before it gives up."""
    wake_s: float = Field(20.0, gt=0, le=3600)
    """Seconds that a token waits for a parked pool before other experts stand in."""


def check_pools(path: str, model: ModelConfig) -> Iterator[Mistake]:
    """Mistakes of the section of one model; `path` is that of the model."""
    from cluster.config.engine import EngineType

    pools, engine = model.pools, model.engine
    if pools is None:
        return
    where = f"{path}.pools"
    if model.kind is not Kind.SPARSE:
        yield Mistake(where, "only a sparse model has experts", "leave it out or change kind")
        return
    simulated = engine.simulated.experts if engine.simulated is not None else None
    if engine.type is EngineType.SIMULATED and simulated is None:
        yield Mistake(where, "this simulated engine has no experts", "set engine.simulated.experts")
    elif simulated is not None and pools.count > simulated.experts:
        yield Mistake(f"{where}.count", "a layer does not have so many experts", "lower it")
    yield from _check_bounds(where, pools)
    if model.replicas.gpus or engine.tensor_parallel_size > 1 or engine.expert_parallel:
        yield Mistake(
            where, "an engine with pools computes on one CPU node", "set replicas.gpus to 0 and do not split it"
        )
    if engine.quantization is not None:
        yield Mistake(f"{path}.engine.quantization", "pools do not compute quantized experts", "leave it out")
    if engine.kv_second_engine:
        yield Mistake(f"{path}.engine.kv_second_engine", "pools serve one engine of a replica", "leave it out")


def _check_bounds(where: str, pools: PoolsConfig) -> Iterator[Mistake]:
    from cluster.config.check_models import cores_of

    if pools.min > pools.max:
        yield Mistake(f"{where}.min", "this is more than max", "lower it or raise max")
    if pools.low >= pools.high:
        yield Mistake(f"{where}.low", "this is not below high, so replicas would come and go", "lower it or raise high")
    if pools.cpu_cores is not None:
        cores = cores_of(pools.cpu_cores)
        if not cores:
            yield Mistake(f"{where}.cpu_cores", "a range of cores runs backwards", "write the smaller number first")
        elif len(cores) < pools.threads:
            yield Mistake(f"{where}.threads", "there are more threads than cores in cpu_cores", "lower it or add cores")
