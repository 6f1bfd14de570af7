"""The fields that steer generation, the same for chat and completions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cluster.api.errors import bad_request
from cluster.api.fields import Fields, byte_length
from cluster.api.json_body import JsonObject
from cluster.config.ingress import LimitsConfig

MAX_TOKENS: Final = 16_777_216
MAX_TOKEN_ID: Final = 16_777_215
"""No vocabulary is larger; ids past a model's own are refused by its engine."""

_TOKEN_ID: Final = re.compile(r"0|[1-9][0-9]{0,7}")
_MAX_USER_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class Sampling:
    """What the ingress needs to know of the sampling fields."""

    stream: bool
    include_usage: bool
    max_tokens: int | None
    """Tokens asked for, None if the caller leaves it open."""
    n: int
    temperature: float | None
    seed: int | None
    stop: tuple[str, ...]


def read_sampling(fields: Fields, limits: LimitsConfig) -> tuple[Sampling, JsonObject]:
    """Checks the sampling fields. Returns them, and the part of the engine's body that they make up."""
    stream = fields.boolean("stream") or False
    max_tokens, max_tokens_field = _max_tokens(fields)
    n = fields.integer("n", 1, limits.max_n)
    stop = _stop(fields, limits)
    body: JsonObject = {
        "stream": stream,
        "n": n,
        "stop": list(stop) or None,
        max_tokens_field: max_tokens,
        "temperature": fields.number("temperature", 0, 2),
        "top_p": fields.number("top_p", 0, 1, above=True),
        "top_k": fields.integer("top_k", -1, MAX_TOKEN_ID),
        "min_p": fields.number("min_p", 0, 1),
        "frequency_penalty": fields.number("frequency_penalty", -2, 2),
        "presence_penalty": fields.number("presence_penalty", -2, 2),
        "repetition_penalty": fields.number("repetition_penalty", 0, 2, above=True),
        "seed": fields.integer("seed", -(2**63), 2**63 - 1),
        "min_tokens": fields.integer("min_tokens", 0, MAX_TOKENS),
        "ignore_eos": fields.boolean("ignore_eos"),
        "logit_bias": _logit_bias(fields, limits),
    }
    fields.string("user", _MAX_USER_BYTES)
    least = body["min_tokens"]
    if isinstance(least, int) and max_tokens is not None and least > max_tokens:
        raise bad_request("min_tokens", f"`min_tokens` must be at most `{max_tokens_field}`.")
    include_usage = _include_usage(fields, stream=stream)
    if include_usage:
        body["stream_options"] = {"include_usage": True}
    read = Sampling(
        stream=stream,
        include_usage=include_usage,
        max_tokens=max_tokens,
        n=n or 1,
        temperature=fields.number("temperature", 0, 2),
        seed=fields.integer("seed", -(2**63), 2**63 - 1),
        stop=stop,
    )
    return read, {name: value for name, value in body.items() if value is not None}


def _max_tokens(fields: Fields) -> tuple[int | None, str]:
    old = fields.integer("max_tokens", 1, MAX_TOKENS)
    new = fields.integer("max_completion_tokens", 1, MAX_TOKENS)
    if old is not None and new is not None and old != new:
        raise bad_request("max_tokens", "`max_tokens` and `max_completion_tokens` differ; send one of them.")
    return (new, "max_completion_tokens") if new is not None else (old, "max_tokens")


def _stop(fields: Fields, limits: LimitsConfig) -> tuple[str, ...]:
    value = fields.get("stop")
    if value is None:
        return ()
    listed = [value] if isinstance(value, str) else fields.array("stop", limits.max_stop) or []
    if len(listed) > limits.max_stop:
        raise bad_request("stop", f"`stop` must have at most {limits.max_stop} items.")
    stop: list[str] = []
    for item in listed:
        if not isinstance(item, str):
            raise bad_request("stop", "`stop` must be a string or an array of strings.", "invalid_type")
        if not item or byte_length(item) > limits.max_stop_bytes:
            raise bad_request("stop", f"Each item of `stop` must have 1 to {limits.max_stop_bytes} bytes.")
        stop.append(item)
    return tuple(stop)


def _logit_bias(fields: Fields, limits: LimitsConfig) -> JsonObject | None:
    biases = fields.object("logit_bias")
    if biases is None:
        return None
    if len(biases.raw()) > limits.max_logit_bias:
        raise bad_request("logit_bias", f"`logit_bias` must have at most {limits.max_logit_bias} entries.")
    for token, bias in biases.raw().items():
        if not _TOKEN_ID.fullmatch(token) or int(token) > MAX_TOKEN_ID:
            raise bad_request("logit_bias", f"The keys of `logit_bias` must be token ids, 0 to {MAX_TOKEN_ID}.")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise bad_request("logit_bias", "The values of `logit_bias` must be numbers, -100 to 100.")
    return biases.raw() or None


def _include_usage(fields: Fields, *, stream: bool) -> bool:
    options = fields.object("stream_options")
    if options is None:
        return False
    if not stream:
        raise bad_request("stream_options", "`stream_options` is for streams; set `stream` to true or leave it out.")
    options.allow(("include_usage", "include_obfuscation"))
    if options.boolean("include_obfuscation"):
        raise bad_request("stream_options.include_obfuscation", "Obfuscation of streams is not offered; leave it out.")
    return options.boolean("include_usage") or False
