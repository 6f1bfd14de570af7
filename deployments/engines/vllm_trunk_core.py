"""What a trunk's engine core is asked from outside, between two steps: what pools do, and what they did for a request."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from deployments.engines.vllm_kv_core import external_of
from deployments.engines.vllm_trunk import TRUNK
from deployments.experts.uses import Uses

if TYPE_CHECKING:
    from vllm.v1.engine.core import EngineCore

REPORT_METHOD: Final = "pointsman_pool_report"
USE_METHOD: Final = "pointsman_pool_use"

WARM_UP: Final = "warm-up"
"""The request with which `vllm_engine` warms an engine up: nobody reads what it says, so it wakes no pool and waits for none."""

USES: Final = Uses()


def pool_report(_core: EngineCore) -> dict[str, Any]:
    """See `PoolClient.report`."""
    return TRUNK.client.report()


def pool_use(_core: EngineCore, request_id: str) -> dict[str, Any] | None:
    """What pools did for a request, as `deployments.experts.uses.use_from` reads it; asked once, at its end.

    Accepts the id that the caller gave; vLLM appends to it, and puts a number before it for each of several choices.
    """
    return USES.take(
        lambda known: known == request_id or known.startswith(f"{request_id}-") or external_of(known) == request_id
    )


def install_in_engine_core() -> None:
    """Add the methods to vLLM's engine core, connect when the model is loaded, and note what pools did after each step."""
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    for name, method in ((REPORT_METHOD, pool_report), (USE_METHOD, pool_use)):
        setattr(EngineCore, name, method)
    runner: Any = CPUModelRunner
    load, execute = runner.load_model, runner.execute_model

    @functools.wraps(load)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = load(self, *args, **kwargs)
        # Pools that cannot be reached are a reason not to start.
        _ = TRUNK.client
        return result

    @functools.wraps(execute)
    def execute_model(self: Any, scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        TRUNK.serving = any(external_of(request) != WARM_UP for request in scheduled.num_scheduled_tokens)
        try:
            result = execute(self, scheduled, *args, **kwargs)
        finally:
            TRUNK.serving = False
        use = TRUNK.client.take_step()
        if use is not None:
            requests = list(self.input_batch.req_ids)
            USES.note(use, requests, self.query_start_loc.np[: len(requests) + 1].tolist())
        return result

    runner.load_model, runner.execute_model = load_model, execute_model
