"""Counts which experts the tokens of a vLLM engine go to, in its worker, as it computes them.

The routers of vLLM's sparse layers hand their choice to a capture function. Here that only keeps a reference for the step;
behind the step, all layers are counted at once. Part of the internals that `vllm_internals` pins and checks.
"""

from __future__ import annotations

import functools
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cluster.experts.load import Counts, ExpertLog, ExpertShape

_log = logging.getLogger(__name__)

LOG_ARGUMENT: Final = "pointsman_log_experts"
"""Of `SamplingParams.extra_args`: tokens of the request whose experts are to be kept, at most."""
MAX_LOGS: Final = 64
"""Logs of ended requests that are kept until somebody asks; the oldest go first."""
_FIRST_SLOTS: Final = 16

Rows = npt.NDArray[np.int32]


@dataclass(slots=True)
class _Logged:
    """The experts of one request's tokens so far."""

    limit: int
    tokens: list[int] = field(default_factory=list)
    rows: list[npt.NDArray[np.uint16]] = field(default_factory=list)
    left_out: int = 0

    def add(self, first: int, tokens: list[int], rows: npt.NDArray[np.uint16]) -> None:
        """Rows (n, layers, top-k) of tokens from position `first`; those that were there before are left out."""
        known = len(self.tokens) + self.left_out
        if first > known:
            return
        tokens, rows = tokens[known - first :], rows[known - first :]
        room = max(0, self.limit - len(self.tokens))
        self.left_out += max(0, len(tokens) - room)
        if room and tokens:
            self.tokens += tokens[:room]
            self.rows.append(rows[:room].copy())

    def log(self, shape: ExpertShape) -> ExpertLog:
        none = np.zeros((0, shape.layers, shape.top_k), np.uint16)
        experts = np.concatenate([none, *self.rows]).astype("<u2")
        return ExpertLog(tuple(self.tokens), experts.tobytes(), self.left_out)


class ExpertTap:
    """One per worker. Costs a reference per layer and a few array operations per step."""

    def __init__(self, runner: Any, routers: list[Any], shape: ExpertShape) -> None:
        self.shape = shape
        self.counting = True
        self.broken = False
        """Whether counting failed; it is off since then."""
        self._runner = runner
        self._routers = routers
        self._step: list[Any] = [None] * shape.layers
        pairs = shape.layers * shape.experts
        self._pairs = pairs
        self._offsets = (np.arange(shape.layers, dtype=np.int64) * shape.experts)[:, None, None]
        self._total = np.zeros(pairs, np.int64)
        self._slots: dict[str, int] = {}
        self._free = list(range(_FIRST_SLOTS))
        self._used = np.zeros((_FIRST_SLOTS, pairs), np.int32)
        self._logged: dict[str, _Logged] = {}
        self._logs: OrderedDict[str, ExpertLog] = OrderedDict()

    def install(self) -> None:
        """Listen to the routers, and look behind every step of the runner."""
        self.listen(counting=True)
        run = self._runner.execute_model

        @functools.wraps(run)
        def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            self._safely(self._before, scheduler_output)
            output = run(scheduler_output, *args, **kwargs)
            self._safely(self._behind, scheduler_output)
            return output

        self._runner.execute_model = execute_model

    def _safely(self, look: Callable[[Any], None], scheduler_output: Any) -> None:
        """An engine must not end because its experts could not be counted: then they are not counted any more."""
        if self.broken:
            return
        try:
            look(scheduler_output)
        except Exception:  # noqa: BLE001 - see above
            _log.exception("experts are not counted any more")
            self.broken = True
            self.listen(counting=False)

    def _before(self, scheduler_output: Any) -> None:
        # What a step left that was not counted does not belong to this one.
        self._step[:] = [None] * len(self._step)
        self.forget(scheduler_output.finished_req_ids)
        for request in scheduler_output.scheduled_new_reqs:
            self._begin(request)

    def _behind(self, scheduler_output: Any) -> None:
        if self.counting and scheduler_output.total_num_scheduled_tokens:
            self._count(scheduler_output.num_scheduled_tokens)

    def listen(self, *, counting: bool) -> None:
        """Count from now on, or do not."""
        self.counting = counting and not self.broken
        for layer, router in enumerate(self._routers):
            router.set_capture_fn(functools.partial(self._step.__setitem__, layer) if self.counting else None)

    def total(self) -> Counts:
        """Tokens since the start, (layers, experts)."""
        return self._total.reshape(self.shape.layers, self.shape.experts)

    def used(self, request_id: str) -> Counts | None:
        """Tokens of a request that has not been forgotten, (layers, experts)."""
        slot = self._slots.get(request_id)
        if slot is None:
            return None
        counts: Counts = self._used[slot].reshape(self.shape.layers, self.shape.experts).astype(np.int64)
        return counts

    def take_log(self, request_id: str) -> ExpertLog | None:
        """The log of a request, ended or not; forgotten then."""
        logged = self._logged.pop(request_id, None)
        return self._logs.pop(request_id, None) if logged is None else logged.log(self.shape)

    def logged(self) -> list[str]:
        """Requests that have a log."""
        return [*self._logs, *self._logged]

    def forget(self, request_ids: Any) -> None:
        """Requests have ended."""
        for request_id in request_ids:
            slot = self._slots.pop(request_id, None)
            if slot is not None:
                self._free.append(slot)
            logged = self._logged.pop(request_id, None)
            if logged is not None:
                self._logs[request_id] = logged.log(self.shape)
                if len(self._logs) > MAX_LOGS:
                    self._logs.popitem(last=False)

    def _begin(self, request: Any) -> None:
        extra = getattr(request.sampling_params, "extra_args", None) or {}
        limit = extra.get(LOG_ARGUMENT)
        if limit and request.req_id not in self._logged:
            self._logged[request.req_id] = _Logged(int(limit))

    def _count(self, scheduled: dict[str, int]) -> None:
        """Take in the step that was just computed. Its tokens stand in the order of the runner's batch."""
        ids = self._rows(sum(scheduled.values()))
        if ids is None:
            return
        flat = (ids + self._offsets).astype(np.int64)
        self._total += np.bincount(flat.ravel(), minlength=self._pairs)
        batch = self._runner.input_batch
        slots, lengths = [], []
        start = 0
        for row, request_id in enumerate(batch.req_ids):
            length = scheduled.get(request_id, 0)
            slots.append(self._slot(request_id))
            lengths.append(length)
            logged = self._logged.get(request_id)
            if logged is not None:
                first = int(batch.num_computed_tokens_cpu[row])
                tokens = batch.token_ids_cpu[row, first : first + length].tolist()
                logged.add(first, tokens, ids[:, start : start + length].swapaxes(0, 1).astype(np.uint16))
            start += length
        by_token = np.repeat(np.asarray(slots, np.int64) * self._pairs, lengths)
        np.add.at(self._used.reshape(-1), (flat + by_token[None, :, None]).ravel(), 1)

    def _rows(self, tokens: int) -> Rows | None:
        """Experts of the step's tokens, (layers, tokens, top-k); None if a layer did not tell."""
        step = self._step
        if any(layer is None or len(layer) < tokens for layer in step):
            return None
        rows: Rows = np.stack([layer.numpy()[:tokens] for layer in step])
        for layer in range(len(step)):
            step[layer] = None
        return rows

    def _slot(self, request_id: str) -> int:
        slot = self._slots.get(request_id)
        if slot is None:
            if not self._free:
                held = len(self._used)
                self._free = list(range(held, 2 * held))
                self._used = np.concatenate([self._used, np.zeros_like(self._used)])
            slot = self._slots[request_id] = self._free.pop()
            self._used[slot] = 0
        return slot


class TapOutput:
    """Hands what a request used to vLLM's scheduler when it ends.

    It takes the place of the connector that vLLM has for this where its newer model runner, which this processor cannot
    run, returns routed experts; so the counts travel with the request's last output.
    """

    def __init__(self, tap: ExpertTap) -> None:
        self._tap = tap

    def build_connector_meta(self, *_: Any) -> None:
        """Nothing to tell the worker."""

    def take_output(self, request: Any, _output: Any) -> npt.NDArray[np.int64] | None:
        """Counts (1, layers, experts) of a request that has just ended."""
        if self._tap.broken or not request.is_finished():
            return None
        try:
            counts = self._tap.used(request.request_id)
        except Exception:  # noqa: BLE001 - the scheduler must not end over it
            _log.exception("the experts of a request are not told")
            return None
        return None if counts is None else counts[np.newaxis]

    def request_finished(self, _request: Any) -> None:
        """The worker is told by the next step."""

    def reset(self) -> None:
        """What was computed was computed, whatever becomes of the prefix cache."""
