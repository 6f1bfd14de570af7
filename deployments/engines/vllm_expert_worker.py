"""Finds the experts of the model that a vLLM worker runs; added to its class as a part of the worker extension."""

from __future__ import annotations

from typing import Any

from cluster.experts.load import ExpertShape
from deployments.engines.expert_routing import NO_EXPERTS
from deployments.engines.vllm_expert_tap import ExpertTap


class ExpertWorker:
    """Methods of a worker, called by `collective_rpc`. The attributes that they use are those of vLLM's own worker."""

    vllm_config: Any
    model_runner: Any
    pointsman_tap: ExpertTap | None = None

    def pointsman_expert_blockers(self) -> list[str]:
        """Why it cannot be counted which experts tokens go to; empty: it can."""
        runners = _sparse_layers(self.model_runner)
        if not runners:
            return [NO_EXPERTS]
        found = []
        if self.model_runner.device.type != "cpu":
            found.append("a GPU (`engine.return_routed_experts` has vLLM tell)")
        if not self.vllm_config.model_config.enforce_eager:
            # The layers are traced once; what a router calls then is not called again.
            found.append("the model is compiled (`engine.enforce_eager: false`)")
        if any(not hasattr(runner.router, "set_capture_fn") for runner in runners):
            found.append("routers that do not tell their choice")
        if any(runner.is_monolithic for runner in runners):
            found.append("kernels that route on their own")
        if len({(r.router.global_num_experts, r.router.top_k) for r in runners if hasattr(r.router, "top_k")}) != 1:
            found.append("layers with different numbers of experts")
        return found

    def pointsman_sparse_layers(self) -> list[int]:
        """Numbers of the layers that have experts, in the model's order of all layers."""
        return [int(runner.layer_id) for runner in _sparse_layers(self.model_runner)]

    def pointsman_tap_experts(self) -> ExpertTap:
        """Begin to count, if that has not begun. Only for workers in the engine core's process."""
        if self.pointsman_tap is None:
            routers = [runner.router for runner in _sparse_layers(self.model_runner)]
            shape = ExpertShape(len(routers), int(routers[0].global_num_experts), int(routers[0].top_k))
            self.pointsman_tap = ExpertTap(self.model_runner, routers, shape)
            self.pointsman_tap.install()
        return self.pointsman_tap


def _sparse_layers(model_runner: Any) -> list[Any]:
    """vLLM's runners of sparse layers, first to last."""
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

    return [module for module in model_runner.get_model().modules() if isinstance(module, MoERunner)]
