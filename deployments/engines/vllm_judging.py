"""Makes vLLM's engine report how sure the model was of the tokens of a request, without the caller seeing more of it.

vLLM's OpenAI layer calls `generate` of the engine client that it is given. This one asks for log probabilities where a
request is to be judged, folds them into figures as they come, and takes them out again unless the caller asked for some.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from cluster.routing.confidence import TOP, ConfidenceMeter
from deployments.engines.vllm_experts import keeping_experts
from deployments.engines.vllm_kv import watch, watched

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

meter: ContextVar[ConfidenceMeter | None] = ContextVar("meter", default=None)
"""Takes in the tokens of the request at work; None: it is not judged. vLLM's layer knows of no such thing, so it is told this way."""


class JudgingClient:
    """An engine client for vLLM's OpenAI layer: the engine itself but for `generate`."""

    def __init__(self, engine: AsyncLLM) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """`AsyncLLM.generate`, judged if `meter` is set, its preemptions noted if `watched` is."""
        taking, notes = meter.get(), watched.get()
        if notes is not None and notes.log_experts:
            sampling_params = keeping_experts(sampling_params, notes.log_experts)
        if taking is None:
            outputs = self._engine.generate(prompt, sampling_params, request_id, **options)
        else:
            outputs = self._judged(taking, prompt, sampling_params, request_id, options)
        return outputs if notes is None else watch(outputs, request_id, notes)

    async def _judged(
        self, taking: ConfidenceMeter, prompt: Any, sampling_params: SamplingParams, request_id: str, options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        asked = sampling_params.logprobs
        if asked is None or 0 <= asked < TOP:
            sampling_params = sampling_params.clone()
            sampling_params.logprobs = TOP
        outputs = self._engine.generate(prompt, sampling_params, request_id, **options)
        try:
            async for output in outputs:
                for choice in output.outputs:
                    if choice.index == 0:
                        fold(taking, choice.token_ids, choice.logprobs)
                    if asked is None:
                        choice.logprobs = choice.cumulative_logprob = None
                    elif 0 <= asked < TOP:
                        choice.logprobs = narrowed(choice.token_ids, choice.logprobs, asked)
                yield output
        finally:
            # An abandoned stream ends here first: the engine must not go on for nobody.
            await outputs.aclose()


def fold(taking: ConfidenceMeter, token_ids: Any, logprobs: Any) -> None:
    """Take in new tokens with vLLM's log probabilities: per token a mapping from id to `Logprob`, None where it has none."""
    for token, position in zip(token_ids, logprobs or (), strict=False):
        if not position:
            continue
        chosen = position.get(token)
        top = sorted((entry.logprob for entry in position.values()), reverse=True)[:TOP]
        taking.add(chosen.logprob if chosen is not None else top[-1], top)


def narrowed(token_ids: Any, logprobs: Any, asked: int) -> Any:
    """What the caller would have got: the chosen token and the `asked` most likely ones, in vLLM's order."""
    if logprobs is None:
        return None
    return [
        position
        and {
            token: entry
            for token, entry in position.items()
            if token == chosen or (entry.rank is not None and entry.rank <= asked)
        }
        for chosen, position in zip(token_ids, logprobs, strict=True)
    ]
