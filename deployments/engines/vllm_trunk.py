"""A trunk: a vLLM engine whose routed experts are computed by pools. Attention, router and shared expert stay in it.

vLLM's own extension point is used: `RoutedExperts` and `MoERunner` are pluggable layers, and an engine whose environment says
that it is a trunk gets those of this file. They hold no weights; tensors of experts are not read from disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from vllm.config import get_current_vllm_config
from vllm.model_executor.custom_op import PluggableLayer
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import FusedMoEQuantConfig
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
from vllm.model_executor.layers.fused_moe.runner.shared_experts import SharedExpertsOrder
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.utils import extract_layer_index

from deployments.experts.client import PoolClient
from deployments.experts.link import Model
from deployments.experts.trunk_files import TrunkFiles
from deployments.experts.weights import Checkpoint

if TYPE_CHECKING:
    from vllm.model_executor.layers.fused_moe.runner.shared_experts import SharedExperts

MAP_VARIABLE: Final = "POINTSMAN_POOL_MAP"
"""Its presence makes an engine a trunk. This variable and its neighbours are those of `TrunkFiles.environment`."""
ANSWER_S: Final = 10.0
OUTAGE_S: Final = 20.0
WAKE_S: Final = 10.0


class NoTrunkError(ValueError):
    """The model, or the way it is to be run, cannot be split into a trunk and pools."""


@dataclass(slots=True)
class Trunk:
    """What the layers of a trunk share. One per engine process, as there is one model in it."""

    layers: list[int] = field(default_factory=list)
    experts: int = 0
    model: Model | None = None
    connected: PoolClient | None = None
    serving: bool = False
    """A step of requests is being computed, not a trial of the model's own, for which no pool is to be woken."""

    def add(self, layer: int, experts: int, model: Model) -> None:
        """A layer of the model says what it is. Raises `NoTrunkError` where layers differ."""
        if self.experts not in (0, experts) or self.model not in (None, model):
            raise NoTrunkError("layers with experts of several kinds cannot be computed by pools")
        self.layers.append(layer)
        self.experts, self.model = experts, model

    @property
    def client(self) -> PoolClient:
        """Connected when it is first used."""
        if self.connected is None:
            self.connected = self._connect()
        return self.connected

    def _connect(self) -> PoolClient:
        if self.model is None:
            raise NoTrunkError("this model has no layer with routed experts that vLLM lets others compute")
        client = PoolClient(files_of(os.environ), self.layers, self.experts, self.model)
        client.open()
        return client


TRUNK = Trunk()


def files_of(environment: Mapping[str, str]) -> TrunkFiles:
    """Reads `TrunkFiles.environment`. Raises `KeyError` without a map or a secret, `ValueError` for times that are none."""
    return TrunkFiles(
        Path(environment[MAP_VARIABLE]),
        Path(environment["POINTSMAN_POOL_SECRET_FILE"]),
        float(environment.get("POINTSMAN_POOL_ANSWER_S", ANSWER_S)),
        float(environment.get("POINTSMAN_POOL_OUTAGE_S", OUTAGE_S)),
        float(environment.get("POINTSMAN_POOL_WAKE_S", WAKE_S)),
    )


def is_trunk() -> bool:
    """Whether the environment makes the engine of this process a trunk."""
    return MAP_VARIABLE in os.environ


class _PooledMethod(FusedMoEMethodBase):
    """Stands where vLLM expects to find how a layer's experts are computed; it holds nothing and computes nothing."""

    def create_weights(self, layer: torch.nn.Module, *weight_args: Any, **extra_weight_attrs: Any) -> None:
        pass

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        pass

    def get_fused_moe_quant_config(self, layer: RoutedExperts) -> FusedMoEQuantConfig:
        return FusedMoEQuantConfig.make()

    @property
    def mk_can_overlap_shared_experts(self) -> bool:
        # vLLM then leaves it to the experts when the shared expert is computed.
        return True


class PooledExperts(RoutedExperts):
    """Routed experts that pools compute."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.layer = extract_layer_index(self.layer_name)
        self.router_logits: torch.Tensor | None = None
        _require(self)
        config = get_current_vllm_config().model_config
        model = Model(
            Checkpoint(Path(config.model)).fingerprint(), str(config.dtype).removeprefix("torch."), self.hidden_size
        )
        TRUNK.add(self.layer, self.global_num_experts, model)

    def _get_quant_method(self, prefix: str, quant_config: Any, moe_config: Any) -> FusedMoEMethodBase:
        if quant_config is not None:
            raise NoTrunkError(f"pools do not compute quantized experts ({type(quant_config).__name__})")
        return _PooledMethod(moe_config)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterable[str]:
        """Takes what a checkpoint has for experts, and keeps none of it."""
        for _ in weights:
            pass
        return ()

    def forward_modular(
        self,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        shared_experts: SharedExperts | None = None,
        shared_experts_input: torch.Tensor | None = None,
    ) -> torch.Tensor:
        client = TRUNK.client
        if TRUNK.serving:
            client.begin(self.layer, x.contiguous(), topk_weights.contiguous(), topk_ids.contiguous(), self._logits)
        if shared_experts is not None:
            # While the pools work.
            shared_experts(shared_experts_input, SharedExpertsOrder.MK_INTERNAL_OVERLAPPED)
        return client.finish() if TRUNK.serving else torch.zeros_like(x)

    def _logits(self) -> torch.Tensor:
        if self.router_logits is None:
            raise NoTrunkError(f"vLLM's runner of {self.layer_name} does not tell what the router said")
        return self.router_logits


class PooledRunner(MoERunner):
    """Lets the experts know what the router said of all of them, not only of the chosen ones."""

    def _apply_quant_method(
        self, hidden_states: torch.Tensor, router_logits: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        self.routed_experts.router_logits = router_logits
        return super()._apply_quant_method(hidden_states, router_logits, *args, **kwargs)


def _require(experts: RoutedExperts) -> None:
    """Raises `NoTrunkError` naming what pools do not compute."""
    config = experts.moe_config
    parallel = config.moe_parallel_config
    unsupported = {
        f"the activation {config.activation.value}": config.activation != MoEActivation.SILU,
        "experts with biases": config.has_bias,
        "router weights on the input": experts.apply_router_weight_on_input,
        "a bound on the activation": experts.swiglu_limit is not None,
        "shared experts fused with the routed ones": experts.expert_map_manager.num_fused_shared_experts > 0,
        "redundant experts": config.num_experts != config.num_logical_experts,
        "a model spread over several processes": parallel.tp_size * parallel.dp_size * parallel.ep_size != 1,
        f"the device {config.device}": torch.device(config.device).type != "cpu",
    }
    found = [name for name, there in unsupported.items() if there]
    if found:
        raise NoTrunkError(f"{experts.layer_name} cannot be computed by pools: not supported with {', '.join(found)}")


def install_trunk() -> None:
    """Make every model that is loaded in this process a trunk; called by vLLM's plugin hook, once."""
    PluggableLayer.register_oot(PooledExperts, name="RoutedExperts")
    PluggableLayer.register_oot(PooledRunner, name="MoERunner")

    def read_no_experts(loader: Any, _model_config: Any) -> None:
        # vLLM's filter for expert parallelism: tensors of experts that are not listed are not read.
        loader.local_expert_ids = set()

    loader_class: Any = DefaultModelLoader
    loader_class._init_ep_weight_filter = read_no_experts
    from deployments.engines.vllm_trunk_core import install_in_engine_core

    install_in_engine_core()
