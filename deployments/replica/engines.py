"""Makes the engine that a model's configuration asks for."""

from __future__ import annotations

from pathlib import Path

from cluster.config.engine import EngineType
from cluster.config.model import ModelConfig
from deployments.engines.protocol import Engine, EngineStartError
from deployments.experts.trunk_files import TrunkFiles
from deployments.replica.spec import ReplicaSpec


def make_engine(spec: ReplicaSpec, trunk: TrunkFiles | None = None) -> Engine:
    """The engine, not started; with `trunk` its experts are in pools.

    Imports only what that engine needs: a replica of one kind pays for no other.
    """
    kind = spec.model.engine.type
    if kind is EngineType.EXTERNAL:
        from deployments.engines.external import ExternalEngine

        if spec.model.upstream is None:
            raise EngineStartError(f"model {spec.name!r} is external and has no upstream")
        return ExternalEngine(spec.name, spec.model.upstream)
    if kind is EngineType.SIMULATED:
        from deployments.engines.simulated import SimulatedEngine

        return SimulatedEngine(spec.name, spec.model.engine, trunk=trunk)
    if spec.path is None:
        raise EngineStartError(
            f"the checkpoint of model {spec.name!r} cannot be had; `pointsman models build` says why. "
            "Then start the cluster again."
        )
    if kind is EngineType.ENCODER:
        from deployments.engines.encoder import EncoderEngine

        return EncoderEngine(spec.name, spec.path, spec.model)
    return vllm_engine(spec.name, spec.path, spec.model, trunk)


def vllm_engine(name: str, path: Path, model: ModelConfig, trunk: TrunkFiles | None = None) -> Engine:
    """A vLLM engine of the checkpoint in a folder, with a second one in reserve where the model's config says so."""
    from deployments.engines.vllm_args import VllmLaunch
    from deployments.engines.vllm_engine import VllmEngine

    launch = VllmLaunch(name, path, model, trunk)
    if not model.engine.kv_second_engine:
        return VllmEngine(launch)
    from deployments.engines.second_engine import SecondEngine

    return SecondEngine(lambda precision: VllmEngine(launch.at_kv_precision(precision)))
