"""Which experts the tokens of a vLLM engine go to, from the replica's side."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from cluster.experts.heat import MAX_TRAFFIC
from cluster.experts.load import Counts, ExpertLoad, ExpertLog, ExpertShape, ExpertUse, packed, unpacked, used
from deployments.engines import vllm_internals
from deployments.engines.expert_routing import NO_EXPERTS
from deployments.engines.protocol import EngineDeadError
from deployments.engines.vllm_asking import ask
from deployments.engines.vllm_expert_core import OWN_METHOD, TAP_METHOD
from deployments.engines.vllm_expert_tap import LOG_ARGUMENT

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

    from deployments.engines.vllm_kv import Watched

_log = logging.getLogger(__name__)

LOAD_PERIOD_S: Final = 1.0
"""Seconds between two questions for the load at least."""


class VllmExperts:
    """What a replica knows of one engine's experts."""

    def __init__(self, engine: AsyncLLM) -> None:
        self._engine = engine
        self._method = ""
        self._shape: ExpertShape | None = None
        self._total: Counts | None = None
        self._traffic: dict[str, Counts] = {}
        self._asked_s = 0.0
        self._layers: list[int] = []
        """Of an engine that returns experts itself, for all layers: those that have some."""
        self.blockers: tuple[str, ...] = (NO_EXPERTS,)
        self.load: ExpertLoad | None = None
        """As it was asked for last."""

    async def detect(self) -> None:
        """Begin to count, where that is possible."""
        self._method, shape, blockers = await ask(self._engine, vllm_internals.EXPERTS_METHOD)
        self.blockers = tuple(str(reason) for reason in blockers)
        if self._method == TAP_METHOD:
            self._shape = ExpertShape(*map(int, shape))
        elif self._method == OWN_METHOD:
            self._layers = [int(layer) for layer in shape]

    async def count(self, *, counting: bool) -> None:
        """Count from now on, or do not. Requests that begin meanwhile are told nothing, or half of it."""
        await ask(self._engine, vllm_internals.COUNT_EXPERTS_METHOD, counting)

    async def refresh(self) -> None:
        """Ask for the load, unless that was done less than `LOAD_PERIOD_S` ago."""
        now = time.monotonic()
        if self._shape is None or now - self._asked_s < LOAD_PERIOD_S:
            return
        self._asked_s = now
        if self._method == TAP_METHOD:
            try:
                self._total = unpacked(await ask(self._engine, vllm_internals.EXPERT_LOAD_METHOD), self._shape)
            except EngineDeadError:
                raise
            except Exception:
                if self._engine.errored:
                    raise
                _log.exception("the load of experts cannot be asked for")
                self._shape, self.blockers = None, ("counting failed; see the log of the replica",)
                return
        if self._total is not None:
            traffic = {name: packed(counts) for name, counts in self._traffic.items()}
            self.load = ExpertLoad(self._shape, packed(self._total), traffic)

    async def take(self, notes: Watched, traffic: str) -> ExpertUse | None:
        """What a request used that has ended; None: the engine did not tell. Raises nothing: the answer is whole."""
        try:
            return await self._taken(notes, traffic)
        except Exception:  # noqa: BLE001 - see above
            _log.exception("the experts of a request are not told")
            return None

    async def _taken(self, notes: Watched, traffic: str) -> ExpertUse | None:
        arrays = [array for array in notes.experts if array.ndim == 3]
        if not arrays:
            return None
        logs: tuple[ExpertLog, ...] = ()
        if self._method == OWN_METHOD:
            arrays = [array[:, self._layers] for array in arrays]
            counts, shape = self._counted(arrays)
            if notes.log_experts:
                logs = tuple(_cut(array, notes.log_experts) for array in arrays)
            self._total = counts if self._total is None else self._total + counts
        elif self._shape is None:
            return None
        else:
            counts, shape = np.concatenate(arrays).sum(axis=0), self._shape
            if notes.log_experts:
                logs = await self._logs(notes.request_ids)
        self._attribute(traffic, counts)
        return used(counts, shape, logs)

    def _counted(self, arrays: list[npt.NDArray[Any]]) -> tuple[Counts, ExpertShape]:
        """Counts of what the engine returned: (tokens, layers, top-k) per sequence."""
        experts = int(self._engine.model_config.get_num_experts())
        shape = self._shape = ExpertShape(arrays[0].shape[1], experts, arrays[0].shape[2])
        offsets = np.arange(shape.layers)[None, :, None] * shape.experts
        flat = (np.concatenate(arrays).astype(np.int64) + offsets).ravel()
        pairs = shape.layers * shape.experts
        return np.bincount(flat, minlength=pairs).reshape(shape.layers, shape.experts).astype(np.int64), shape

    def _attribute(self, traffic: str, counts: Counts) -> None:
        if traffic not in self._traffic and len(self._traffic) >= MAX_TRAFFIC - ("" not in self._traffic):
            traffic = ""
        before = self._traffic.get(traffic)
        self._traffic[traffic] = counts if before is None else before + counts

    async def _logs(self, request_ids: list[str]) -> tuple[ExpertLog, ...]:
        logs = []
        for request_id in request_ids:
            for tokens, experts, left_out in await ask(self._engine, vllm_internals.EXPERT_LOG_METHOD, request_id):
                logs.append(ExpertLog(tuple(map(int, tokens)), bytes(experts), int(left_out)))
        return tuple(logs)


def keeping_experts(parameters: SamplingParams, tokens: int) -> SamplingParams:
    """Parameters with which the experts of so many tokens are kept, those of a prompt that is in the cache included."""
    changed = parameters.clone()
    changed.extra_args = {**(parameters.extra_args or {}), LOG_ARGUMENT: tokens}
    changed.skip_reading_prefix_cache = True
    return changed


def _cut(array: npt.NDArray[Any], limit: int) -> ExpertLog:
    """What the engine returned of one sequence. It names no token ids."""
    kept = array[:limit].astype("<u2")
    return ExpertLog((-1,) * len(kept), kept.tobytes(), len(array) - len(kept))
