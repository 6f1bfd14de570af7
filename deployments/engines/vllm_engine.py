"""The real engine: vLLM's `AsyncLLM` with vLLM's own OpenAI layer in front of it."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from cluster.api.errors import ApiError
from cluster.routing.confidence import Calibration, ConfidenceMeter
from deployments.engines import vllm_errors
from deployments.engines.judging import Judging
from deployments.engines.protocol import (
    Emit,
    EngineDeadError,
    EngineReply,
    EngineRequest,
    EngineStartError,
    EngineStats,
    TokenUsage,
)
from deployments.engines.truncation import with_truncation
from deployments.engines.vllm_args import VllmLaunch, engine_args, engine_environment, has_gpu
from deployments.processes import kill_all

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

    from cluster.api.json_body import JsonObject
    from cluster.experts.load import ExpertLoad
    from deployments.engines.kv_precision import KvSwitch
    from deployments.engines.vllm_experts import VllmExperts
    from deployments.engines.vllm_kv import VllmKv
    from deployments.engines.vllm_openai import OpenAILayer
    from deployments.engines.vllm_pools import VllmPools
    from deployments.engines.vllm_window import ChatWindow

_ERROR_PREFIX = 'data: {"error"'
_DONE = "data: [DONE]\n\n"


class VllmEngine:
    """One vLLM engine. The engine core runs in a process of its own, with the worker inside it."""

    kind = "vllm"

    def __init__(self, launch: VllmLaunch) -> None:
        self._launch = launch
        self._calibration = Calibration(launch.model.calibration)
        self._closed = threading.Event()
        self._engine: AsyncLLM | None = None
        self._layer: OpenAILayer | None = None
        self._window: ChatWindow | None = None
        self._kv: VllmKv | None = None
        self._experts: VllmExperts | None = None
        self._pools: VllmPools | None = None
        self._changing = asyncio.Lock()
        self._switches = 0
        self._neutralise: Callable[[object], object] = lambda value: value

    async def start(self) -> None:
        """Load the model. Raises `EngineStartError` naming the model and what vLLM said."""
        accelerated = has_gpu()
        os.environ.update(engine_environment(self._launch.model, accelerated))
        if self._launch.trunk is not None:
            os.environ.update(self._launch.trunk.environment())
        loop = asyncio.get_running_loop()
        born: asyncio.Future[None] = loop.create_future()
        # The kernel ties the engine core to the thread that started it, so that thread must live as long as the
        # engine: it builds the engine and then sleeps until `close`.
        threading.Thread(target=self._build, args=(accelerated, loop, born), name="vllm-owner", daemon=True).start()
        await born
        await self._attach()

    def _build(self, accelerated: bool, loop: asyncio.AbstractEventLoop, born: asyncio.Future[None]) -> None:
        try:
            from vllm.v1.engine.async_llm import AsyncLLM

            from deployments.engines import vllm_internals
            from deployments.engines.vllm_stats import StatsKeeper

            vllm_internals.check_parts()
            self._keeper = StatsKeeper()
            self._engine = AsyncLLM.from_engine_args(
                engine_args(self._launch, accelerated), stat_loggers=[self._keeper.logger]
            )
        except Exception as error:  # noqa: BLE001 - whatever stops an engine from starting is the caller's to know
            failure = EngineStartError(f"model {self._launch.name!r} could not start: {error}")
            failure.__cause__ = error
            loop.call_soon_threadsafe(born.set_exception, failure)
            return
        loop.call_soon_threadsafe(born.set_result, None)
        self._closed.wait()

    async def _attach(self) -> None:
        from deployments.engines import vllm_internals
        from deployments.engines.vllm_experts import VllmExperts
        from deployments.engines.vllm_kv import VllmKv
        from deployments.engines.vllm_openai import OpenAILayer
        from deployments.engines.vllm_pools import VllmPools
        from deployments.engines.vllm_tokenizing import guard_special_tokens

        engine, config = self._running(), self._launch.model.engine
        vllm_internals.require_core_pids(engine)
        self._neutralise = guard_special_tokens(engine)
        self._layer = OpenAILayer(engine, self._launch.name, str(self._launch.path), config)
        if config.kv_window_tokens is not None:
            from deployments.engines.vllm_window import ChatWindow

            self._window = ChatWindow(self._layer.renderer, config.kv_window_tokens, engine.model_config.max_model_len)
        self._kv = VllmKv(engine)
        await self._kv.detect()
        self._sized()
        self._experts = VllmExperts(engine)
        await self._experts.detect()
        if self._launch.trunk is not None:
            self._pools = VllmPools(engine)
        await self.heartbeat()
        # One throw-away token: the first real request does not pay for lazy set-up.
        await self._warm_up()
        # Only now: the warm-up belongs to no caller's trace.
        vllm_internals.use_ambient_tracer(engine)

    async def run(self, request: EngineRequest, emit: Emit) -> EngineReply:
        """Serve one request; see `Engine.run`."""
        from deployments.engines.vllm_judging import meter
        from deployments.engines.vllm_kv import Watched, watched
        from deployments.engines.vllm_openai import bare_request, usage_of
        from deployments.engines.vllm_tokenizing import prompt_limit

        if self._layer is None or self._kv is None or self._experts is None:
            raise EngineDeadError(f"model {self._launch.name!r} has not started")
        raw = bare_request(request.request_id, request.trace_headers)
        body = cast("JsonObject", self._neutralise(dict(request.body)))
        if request.tenant:
            # How much of a prompt was cached is told: another tenant's would be told with it.
            body["cache_salt"] = request.tenant
        prompt_limit.set(request.max_prompt_tokens)
        judging = ConfidenceMeter(self._calibration) if request.judge else None
        meter.set(judging)
        notes = Watched(log_experts=0 if self._experts.blockers else request.log_experts)
        watched.set(notes)
        truncated = TokenUsage()
        try:
            if self._window is not None:
                body, truncated = await self._window.apply(request.endpoint, body)
            answer = await self._layer.create(request.endpoint, body, raw)
            if (task := asyncio.current_task()) is not None and task.cancelling():
                # vLLM turns a cancellation into an error answer; who cancelled must see it end.
                raise asyncio.CancelledError
            if isinstance(answer, AsyncGenerator):
                reply = await self._stream(answer, Judging(emit, judging, request.judge_tokens), truncated)
            else:
                reply = self._plain(answer)
        except ApiError as error:
            return EngineReply(status=error.status, body=error.body())
        except Exception as error:  # noqa: BLE001 - vLLM maps its exceptions to statuses itself; see _refused
            reply = self._refused(error)
        usage = usage_of(raw)
        if reply.usage != TokenUsage():
            usage = reply.usage
        return replace(
            reply,
            confidence=judging.result() if judging is not None else None,
            kv=await self._kv.used(notes),
            experts=await self._experts.take(notes, request.traffic),
            pools=None if self._pools is None else await self._pools.take(notes),
            usage=replace(
                usage, truncated_turns=truncated.truncated_turns, truncated_tokens=truncated.truncated_tokens
            ),
        )

    async def _stream(self, answer: AsyncGenerator[str, None], emit: Judging, truncated: TokenUsage) -> EngineReply:
        last = ""
        untold = truncated
        try:
            async for item in answer:
                if item == _DONE:
                    # vLLM ends failed streams with it too. The ingress writes it, for answers that are whole.
                    break
                if item.startswith(_ERROR_PREFIX):
                    return self._stream_failed(item)
                if '"finish_reason":"' in item:
                    last = item
                emit.event(with_truncation(item, untold).encode())
                untold = TokenUsage()
        finally:
            await answer.aclose()
        return EngineReply(status=200, finish_reason=_finish_reason(last))

    def _stream_failed(self, event: str) -> EngineReply:
        """What vLLM's error `event` says, as the reply."""
        if self._running().errored:
            raise EngineDeadError(f"the engine of model {self._launch.name!r} died while it served a stream")
        error = vllm_errors.of_event(event)
        return EngineReply(status=error.status, body=error.body())

    def _plain(self, answer: Any) -> EngineReply:
        error = getattr(answer, "error", None)
        if error is not None:
            refused = vllm_errors.refusal(int(error.code), error.message, error.param)
            return EngineReply(status=refused.status, body=refused.body())
        usage = answer.usage
        details = usage.prompt_tokens_details
        return EngineReply(
            status=200,
            body=answer.model_dump_json(exclude_none=False).encode(),
            usage=TokenUsage(
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens or 0,
                cached_tokens=(details.cached_tokens or 0) if details is not None else 0,
            ),
            finish_reason=answer.choices[0].finish_reason if answer.choices else None,
        )

    def _refused(self, error: Exception) -> EngineReply:
        """What vLLM raised, as an OpenAI error, or `EngineDeadError` when the engine is gone."""
        from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
        from vllm.v1.engine.exceptions import EngineDeadError as VllmDeadError

        if isinstance(error, VllmDeadError) or self._running().errored:
            raise EngineDeadError(f"the engine of model {self._launch.name!r} is dead") from error
        info = create_error_response(error).error
        refused = vllm_errors.refusal(int(info.code), info.message, info.param)
        return EngineReply(status=refused.status, body=refused.body())

    def stats(self) -> EngineStats:
        """A snapshot of the last engine step or heartbeat, whichever is newer."""
        return self._keeper.stats

    async def heartbeat(self) -> None:
        """Ask the engine core for its state; see `Engine.heartbeat`."""
        from deployments.engines.vllm_internals import core_snapshot

        engine = self._running()
        try:
            snapshot = await core_snapshot(engine)
        except Exception as error:
            raise EngineDeadError(f"the engine of model {self._launch.name!r} does not answer: {error}") from error
        self._keeper.recount(snapshot.preempted, snapshot.forced, snapshot.recomputed)
        self._keeper.observe(snapshot.running, snapshot.waiting, snapshot.kv_usage)
        if self._experts is not None:
            await self._experts.refresh()

    @property
    def weights(self) -> str:
        """Number format of the weights; see `Engine.weights`."""
        return "" if self._kv is None else self._kv.weights

    @property
    def sampling_defaults(self) -> tuple[float, float]:
        """Those that come with the checkpoint; see `Engine.sampling_defaults`."""
        given = {} if self._engine is None else self._engine.model_config.get_diff_sampling_param()
        return float(given.get("temperature", 1.0)), float(given.get("top_p", 1.0))

    @property
    def expert_blockers(self) -> tuple[str, ...]:
        """Why it does not tell of experts; see `Engine.expert_blockers`."""
        return () if self._experts is None else self._experts.blockers

    def expert_load(self) -> ExpertLoad | None:
        """As of the last heartbeat; see `Engine.expert_load`."""
        return None if self._experts is None else self._experts.load

    async def count_experts(self, *, counting: bool) -> None:
        """Count from now on which experts tokens go to, or do not: what it costs is measured so."""
        if self._experts is None or self._experts.blockers:
            raise ValueError(f"the experts of model {self._launch.name!r} are not counted")
        await self._experts.count(counting=counting)

    @property
    def kv_precisions(self) -> tuple[str, ...]:
        """What the KV precision can change to; see `Engine.kv_precisions`."""
        return () if self._kv is None else self._kv.precisions

    @property
    def kv_blockers(self) -> tuple[str, ...]:
        """Why it cannot change; see `Engine.kv_blockers`."""
        return () if self._kv is None else self._kv.blockers

    async def set_kv_precision(self, precision: str) -> KvSwitch:
        """Change the KV precision between two engine steps; see `Engine.set_kv_precision`. One change at a time."""
        # Whoever asked may give up waiting. The engine changes all the same, so what is known of it must follow.
        return await asyncio.shield(asyncio.create_task(self._change(precision), name="kv-precision"))

    async def _change(self, precision: str) -> KvSwitch:
        async with self._changing:
            if self._kv is None:
                raise EngineDeadError(f"the engine of model {self._launch.name!r} is closed")
            switch = await self._kv.switch(precision)
            if switch.before != switch.after:
                self._switches += 1
                self._sized()
                # What it preempted is counted by the core.
                await self.heartbeat()
            return switch

    def _sized(self) -> None:
        if self._kv is not None:
            self._keeper.sized(self._kv.blocks, self._kv.block_tokens, self._kv.precision, self._switches)

    def pids(self) -> tuple[int, ...]:
        """The engine core's process. Workers, where there are several devices, are its children and end with it."""
        from deployments.engines.vllm_internals import core_pids

        return () if self._engine is None else core_pids(self._engine)

    async def close(self) -> None:
        """Stop the engine core and free its memory. Returns once its process is gone."""
        from deployments.engines import vllm_internals

        pids = self.pids()
        engine, self._engine = self._engine, None
        # They hold the engine, too, and it complains if it is collected while the interpreter ends.
        self._layer = self._window = self._kv = self._experts = self._pools = None
        if engine is not None:
            await asyncio.to_thread(functools.partial(engine.shutdown, timeout=5.0))
            # vLLM sends a last SIGKILL and does not wait for what it does.
            await asyncio.to_thread(kill_all, pids, grace_s=0.0)
            vllm_internals.close_context(engine)
        self._closed.set()

    async def _warm_up(self) -> None:
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=1, temperature=0.0, logprobs=1)
        async for _ in self._running().generate("warm up", parameters, "warm-up"):
            pass

    def _running(self) -> AsyncLLM:
        if self._engine is None:
            raise EngineDeadError(f"the engine of model {self._launch.name!r} is closed")
        return self._engine


def _finish_reason(event: str) -> str | None:
    """The finish reason in a stream's last content event, if one came."""
    if not event.startswith("data: {"):
        return None
    choices: list[Mapping[str, Any]] = json.loads(event[len("data: ") :]).get("choices") or [{}]
    reason = choices[0].get("finish_reason")
    return reason if isinstance(reason, str) else None
