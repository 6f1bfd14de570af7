"""The sequences that the sparse and the mini model are fitted on."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer

from deployments.models import text
from deployments.models.conversations import read_conversations

_ALL = 1 << 40


def training_tokens(dense: Path, conversations: Path, tokens: tuple[int, int, int]) -> Tensor:
    """Training text of every kind and all conversations: int64 (rows, WINDOW).

    `dense` is the folder of the model whose tokenizer is used, `conversations` that of the conversations, and `tokens`
    how many of prose, code and data to take.
    """
    tokenizer = AutoTokenizer.from_pretrained(dense)
    parts = [
        text.sequences(text.documents(kind, "train"), tokenizer, count)
        for kind, count in zip(text.KINDS, tokens, strict=True)
    ]
    parts.append(text.sequences(read_conversations(conversations), tokenizer, _ALL))
    return torch.cat(parts)
