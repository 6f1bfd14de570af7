"""What a trunk's engine core is asked from outside, between two steps: another pool map, what pools do, degraded requests."""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from cluster.experts.pools import PoolMapError, parse_pool_map
from deployments.engines.vllm_trunk import TRUNK

if TYPE_CHECKING:
    from vllm.v1.engine.core import EngineCore

MAP_METHOD: Final = "pointsman_set_pool_map"
REPORT_METHOD: Final = "pointsman_pool_report"
DEGRADED_METHOD: Final = "pointsman_degraded"
MAX_NOTED: Final = 4096
"""Requests whose degraded rows are kept until somebody asks; the oldest go first."""

_degraded: OrderedDict[str, int] = OrderedDict()


def set_pool_map(_core: EngineCore, text: str) -> str:
    """Work by another map; returns why not, or nothing."""
    try:
        TRUNK.client.replace(parse_pool_map(text))
    except PoolMapError as error:
        return str(error)
    return ""


def pool_report(_core: EngineCore) -> dict[str, Any]:
    """See `PoolClient.report`."""
    return TRUNK.client.report()


def take_degraded(_core: EngineCore, request_id: str) -> int:
    """Rows times layers of a request in which other experts stood in; asked once, at its end.

    Accepts the id that the caller gave; vLLM appends to it.
    """
    found = [known for known in _degraded if known == request_id or known.startswith(f"{request_id}-")]
    return sum(_degraded.pop(known) for known in found)


def note_degraded(request_ids: list[str], starts: list[int]) -> None:
    """Tell the degraded rows of a step, which are in `TRUNK.client`, by request: `starts` has the first row of each, then the end."""
    rows = TRUNK.client.degraded
    if not rows:
        return
    for request_id, start, end in zip(request_ids, starts, starts[1:], strict=False):
        count = sum(layers for row, layers in rows.items() if start <= row < end)
        if count:
            _degraded[request_id] = _degraded.pop(request_id, 0) + count
            if len(_degraded) > MAX_NOTED:
                _degraded.popitem(last=False)
    rows.clear()


def install_in_engine_core() -> None:
    """Add the methods to vLLM's engine core, and count degraded rows after each step of its model runner."""
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    for name, method in ((MAP_METHOD, set_pool_map), (REPORT_METHOD, pool_report), (DEGRADED_METHOD, take_degraded)):
        setattr(EngineCore, name, method)
    runner: Any = CPUModelRunner
    execute = runner.execute_model

    @functools.wraps(execute)
    def execute_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = execute(self, *args, **kwargs)
        client = TRUNK.connected
        if client is not None and client.degraded:
            ids = self.input_batch.req_ids
            note_degraded(list(ids), self.query_start_loc.np[: len(ids) + 1].tolist())
        return result

    runner.execute_model = execute_model
