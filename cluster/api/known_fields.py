"""Which fields each endpoint takes, and which well-known ones it refuses with a reason."""

from __future__ import annotations

from typing import Final

SAMPLING: Final = frozenset(
    {
        "model",
        "stream",
        "stream_options",
        "max_tokens",
        "n",
        "stop",
        "seed",
        "temperature",
        "top_p",
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
        "logprobs",
        "user",
        # Not OpenAI's, but what load tests and many clients send; each is bounded like the rest.
        "top_k",
        "min_p",
        "repetition_penalty",
        "min_tokens",
        "ignore_eos",
        # Ours: what a caller may say about routing.
        "pointsman",
    }
)
"""Fields that chat and completions share."""

CHAT: Final = SAMPLING | {
    "messages",
    "max_completion_tokens",
    "top_logprobs",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "metadata",
    "store",
    "modalities",
    "service_tier",
    "safety_identifier",
}

COMPLETION: Final = SAMPLING | {"prompt", "best_of", "echo"}

EMBEDDING: Final = frozenset({"model", "input", "encoding_format", "dimensions", "user"})

_OPERATOR: Final = "only the operator decides this, in the cluster config"
_CONTENT: Final = "only text is taken"
_STRUCTURE: Final = "state the form of the answer in `response_format`"
_INTERNAL: Final = "this is a detail of the engine"
_CACHE: Final = "the cluster chooses what shares a cache"

REFUSED: Final = {
    **dict.fromkeys(("chat_template", "chat_template_kwargs", "mm_processor_kwargs", "media_io_kwargs"), _OPERATOR),
    **dict.fromkeys(("add_generation_prompt", "continue_final_message", "add_special_tokens", "documents"), _OPERATOR),
    **dict.fromkeys(("api_base", "api_key", "base_url", "api_version", "api_type", "extra_headers"), _OPERATOR),
    **dict.fromkeys(("organization", "custom_llm_provider", "fallbacks", "mock_response"), _OPERATOR),
    **dict.fromkeys(("priority", "logits_processors", "vllm_xargs", "extra_args", "lora_request"), _OPERATOR),
    **dict.fromkeys(("prompt_embeds", "image_url", "images", "audio", "file", "files", "video"), _CONTENT),
    **dict.fromkeys(("multi_modal_data", "input_audio", "prediction"), _CONTENT),
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar"), _STRUCTURE),
    **dict.fromkeys(("guided_decoding_backend", "guided_whitespace_pattern", "structural_tag"), _STRUCTURE),
    **dict.fromkeys(("structured_outputs", "grammar", "json_schema", "format"), _STRUCTURE),
    **dict.fromkeys(("kv_transfer_params", "request_id", "return_token_ids", "return_tokens_as_token_ids"), _INTERNAL),
    **dict.fromkeys(("bad_words", "allowed_token_ids", "stop_token_ids", "truncate_prompt_tokens"), _INTERNAL),
    **dict.fromkeys(("include_stop_str_in_output", "skip_special_tokens", "prompt_logprobs"), _INTERNAL),
    **dict.fromkeys(("spaces_between_special_tokens", "use_beam_search", "length_penalty", "echo"), _INTERNAL),
    **dict.fromkeys(("include_reasoning", "cache_hit_threshold", "repetition_detection"), _INTERNAL),
    **dict.fromkeys(("cache_salt", "prompt_cache_key", "prompt_cache_retention"), _CACHE),
    "functions": "it is deprecated; use `tools`",
    "function_call": "it is deprecated; use `tool_choice`",
    "suffix": "the models here continue text, they do not fill gaps",
    "reasoning_effort": "the models here have no such setting",
    "thinking": "the models here have no such setting",
    "verbosity": "the models here have no such setting",
    "web_search_options": "the models here do not search the web",
    "best_of": "chat takes `n` alone",
}
"""Refused with a reason, on every endpoint that does not take the field."""

CONTENT_PARTS: Final = (
    "image_url",
    "input_image",
    "image",
    "image_pil",
    "image_embeds",
    "input_audio",
    "audio_url",
    "audio",
    "audio_embeds",
    "video_url",
    "video",
    "file",
    "input_file",
    "thinking",
    "document",
)
"""Types of content parts that are refused by name."""
