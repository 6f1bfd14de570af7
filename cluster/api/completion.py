"""`/v1/completions`: from a parsed body to a request within bounds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from cluster.api.chat import MAX_MODEL_BYTES
from cluster.api.errors import bad_request
from cluster.api.fields import Fields, required
from cluster.api.inputs import read_inputs
from cluster.api.json_body import JsonObject
from cluster.api.knobs import NO_KNOBS, Knobs, read_knobs
from cluster.api.known_fields import COMPLETION, REFUSED
from cluster.api.prompt_size import estimate_tokens
from cluster.api.sampling import read_sampling
from cluster.config.ingress import LimitsConfig


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A completions request within bounds. Texts stay out of its repr."""

    model: str = field(repr=False)
    """What the caller wrote: a name, a role or `auto`, not yet looked up."""
    stream: bool
    include_usage: bool
    max_tokens: int | None
    """Completion tokens asked for, per prompt; None: left open."""
    n: int
    temperature: float | None
    seed: int | None
    prompts: int
    """Prompts (a count)."""
    prompt_bytes: int
    """Bytes of the longest prompt, UTF-8."""
    prompt_tokens_estimate: int
    """About that many tokens have all prompts together."""
    logprobs: bool
    text: str = field(repr=False)
    """The first prompt, for routing signals; empty for token ids."""
    body: JsonObject = field(repr=False)
    """The cleaned body, without `model`, to hand to an engine. Not to be changed in place."""
    knobs: Knobs = NO_KNOBS
    """What the caller says about routing."""

    @property
    def sequences(self) -> int:
        """Sequences that the request makes (a count)."""
        return self.n * self.prompts

    def with_body(self, changes: JsonObject) -> CompletionRequest:
        """A copy whose body has `changes` in it."""
        return replace(self, body={**self.body, **changes})


def parse_completion(body: JsonObject, limits: LimitsConfig) -> CompletionRequest:
    """The completions request in `body`. Raises `ApiError` 400 naming field and limit, never the caller's text."""
    fields = Fields(body)
    fields.allow(COMPLETION, REFUSED)
    model = required(fields.string("model", MAX_MODEL_BYTES, empty=False), "model")
    sampling, engine_body = read_sampling(fields, limits)
    inputs = read_inputs(fields, "prompt", limits)
    if inputs.count * sampling.n > limits.max_embedding_inputs:
        message = f"Prompts times `n` must be at most {limits.max_embedding_inputs}."
        raise bad_request("n", message)
    best_of = fields.integer("best_of", 1, limits.max_n)
    if best_of is not None and best_of != sampling.n:
        raise bad_request("best_of", "`best_of` must equal `n`: every completion that is made is returned.")
    logprobs = fields.integer("logprobs", 0, limits.max_top_logprobs)
    echo = fields.boolean("echo")
    engine_body["prompt"] = inputs.value
    if logprobs is not None:
        engine_body["logprobs"] = logprobs
    if echo:
        engine_body["echo"] = True
    return CompletionRequest(
        model=model,
        stream=sampling.stream,
        include_usage=sampling.include_usage,
        max_tokens=sampling.max_tokens,
        n=sampling.n,
        temperature=sampling.temperature,
        seed=sampling.seed,
        prompts=inputs.count,
        prompt_bytes=inputs.longest_bytes,
        prompt_tokens_estimate=estimate_tokens(inputs.text_bytes),
        logprobs=logprobs is not None,
        text=inputs.first_text,
        body=engine_body,
        knobs=read_knobs(fields),
    )
