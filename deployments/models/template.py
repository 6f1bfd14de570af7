"""The chat template of the embedded chat models."""

from __future__ import annotations

from pathlib import Path

TEMPLATE_FILE = Path(__file__).with_name("chat_template.jinja")

ORIGINAL = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The template that SmolLM2-135M-Instruct was trained with. Ours renders the same text when no tools are involved."""


def chat_template() -> str:
    """The template shipped with the embedded models: the original plus tools in the Hermes form.

    Tool definitions stand in `<tools>`, calls in `<tool_call>` and results in `<tool_response>`, the form which
    vLLM's `hermes` tool parser reads.
    """
    return TEMPLATE_FILE.read_text(encoding="utf-8")
