"""Expert load in vLLM's engine core: methods that `vllm_internals` adds to it."""

from __future__ import annotations

from typing import Any, Final

from cluster.experts.load import packed
from deployments.engines.expert_routing import NO_EXPERTS
from deployments.engines.vllm_expert_tap import ExpertTap, TapOutput
from deployments.engines.vllm_kv_core import external_of

OWN_METHOD: Final = "own"
"""The engine itself returns the experts of each token, at the end of a request."""
TAP_METHOD: Final = "tap"
"""Our tap in the worker counts them, step by step."""


def start(core: Any) -> list[Any]:
    """Begin to count. Returns how, the shape (layers, experts, top-k) or the layers with experts, and why it cannot be."""
    scheduler = core.scheduler
    if scheduler.aux_output_connector is not None and not isinstance(scheduler.aux_output_connector, TapOutput):
        return [OWN_METHOD, core.collective_rpc("pointsman_sparse_layers")[0], []]
    if not _in_this_process(core):
        return ["", [], ["a worker in a process of its own"] if core.vllm_config.model_config.is_moe else [NO_EXPERTS]]
    blockers = core.collective_rpc("pointsman_expert_blockers")[0]
    if blockers:
        return ["", [], blockers]
    tap: ExpertTap = core.collective_rpc("pointsman_tap_experts")[0]
    scheduler.aux_output_connector = TapOutput(tap)
    return [TAP_METHOD, [tap.shape.layers, tap.shape.experts, tap.shape.top_k], []]


def load(core: Any) -> bytes:
    """Tokens since the start; see `packed`."""
    return packed(_tap(core).total())


def log(core: Any, external_id: str) -> list[list[Any]]:
    """Token ids, experts (see `ExpertLog`) and the number left out, for each sequence of a request; forgotten then."""
    tap = _tap(core)
    names = sorted((one for one in tap.logged() if external_of(one) == external_id), key=_choice)
    found = [tap.take_log(name) for name in names]
    return [[list(one.tokens), one.experts, one.left_out] for one in found if one is not None]


def count(core: Any, counting: bool) -> None:
    """Count from now on, or do not: what it costs is measured so."""
    _tap(core).listen(counting=counting)


def _tap(core: Any) -> ExpertTap:
    tap: ExpertTap = core.collective_rpc("pointsman_tap_experts")[0]
    return tap


def _in_this_process(core: Any) -> bool:
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    return isinstance(core.model_executor, UniProcExecutor)


def _choice(request_id: str) -> tuple[int, str]:
    """Sequences of a request in the order of its choices."""
    number = request_id.partition("_")[0]
    return (int(number) if number.isdecimal() else 0, request_id)
