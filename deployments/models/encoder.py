"""The sentence encoder all-MiniLM-L6-v2 in plain torch: a BERT of six layers, mean pooling, unit norm.

The forward pass is written out because importing a modelling library costs several times the model's own memory.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from deployments.models.errors import MissingFilesError


@dataclass(frozen=True)
class Embeddings:
    """Vectors of n texts."""

    vectors: npt.NDArray[np.float32]
    """(n, dimension), each of unit Euclidean norm."""
    tokens: tuple[int, ...]
    """Tokens of each text that were read, the two special ones included."""
    dropped: tuple[int, ...]
    """Tokens of each text past the limit, which its vector does not reflect."""


class SentenceEncoder:
    """Turns texts into vectors whose dot product is their similarity.

    `path` is a folder in the sentence-transformers layout of all-MiniLM-L6-v2. Texts are cut at `max_tokens`, as the
    reference implementation does. Calls on one instance may come from several threads.

    Raises MissingFilesError when a file is missing or the model is of another kind.
    """

    def __init__(self, path: Path, batch_size: int = 32) -> None:
        try:
            config = json.loads((path / "config.json").read_text(encoding="utf-8"))
            limits = json.loads((path / "sentence_bert_config.json").read_text(encoding="utf-8"))
            self._tokenizer = Tokenizer.from_str((path / "tokenizer.json").read_text(encoding="utf-8"))
            self._weights = {
                name.removeprefix("bert."): tensor.float()
                for name, tensor in load_file(path / "model.safetensors").items()
                if tensor.is_floating_point()
            }
        except (OSError, ValueError) as error:
            remedy = "Point the source at an all-MiniLM-L6-v2 folder, or use embedded:encoder"
            raise MissingFilesError(f"{path} cannot be read as a sentence encoder: {error}", remedy) from error
        if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
            remedy = "Use a BERT encoder such as embedded:encoder"
            raise MissingFilesError(f"{path} holds a {config.get('model_type')} model, not a BERT", remedy)
        self.dimension: int = config["hidden_size"]
        self.max_tokens: int = limits["max_seq_length"]
        self._heads: int = config["num_attention_heads"]
        self._layers: int = config["num_hidden_layers"]
        self._epsilon: float = config["layer_norm_eps"]
        self._batch_size = batch_size
        # The file asks for its own cut and for padding to one length; both are done here, so that what is cut can
        # be counted and short texts stay cheap.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, texts: Sequence[str]) -> Embeddings:
        """Embed n texts; n may be 0."""
        encoded = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        vectors = np.zeros((len(encoded), self.dimension), dtype=np.float32)
        # Texts of alike length go together, so that little is spent on padding.
        order = sorted(range(len(encoded)), key=lambda place: len(encoded[place]))
        for start in range(0, len(order), self._batch_size):
            places = order[start : start + self._batch_size]
            vectors[places] = self._embed([self._cut(encoded[place]) for place in places]).numpy()
        read = tuple(min(len(ids), self.max_tokens) for ids in encoded)
        dropped = tuple(len(ids) - kept for ids, kept in zip(encoded, read, strict=True))
        return Embeddings(vectors, read, dropped)

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, the two special ones included, before any cut."""
        return len(self._tokenizer.encode(text).ids)

    def _cut(self, ids: list[int]) -> list[int]:
        # The last token closes the text and stays.
        return ids if len(ids) <= self.max_tokens else [*ids[: self.max_tokens - 1], ids[-1]]

    @torch.inference_mode()
    def _embed(self, batch: list[list[int]]) -> Tensor:
        length = max(len(ids) for ids in batch)
        tokens = torch.tensor([ids + [0] * (length - len(ids)) for ids in batch])
        mask = torch.arange(length) < torch.tensor([[len(ids)] for ids in batch])
        table = self._weights
        x = table["embeddings.word_embeddings.weight"][tokens]
        x = (
            x
            + table["embeddings.position_embeddings.weight"][:length]
            + table["embeddings.token_type_embeddings.weight"][0]
        )
        x = self._norm(x, "embeddings.LayerNorm")
        for number in range(self._layers):
            x = self._layer(x, mask[:, None, None, :], f"encoder.layer.{number}")
        kept = mask[..., None]
        mean = (x * kept).sum(1) / kept.sum(1)
        return functional.normalize(mean, dim=-1)

    def _layer(self, x: Tensor, mask: Tensor, name: str) -> Tensor:
        rows, length, _ = x.shape
        q, k, v = (
            self._linear(x, f"{name}.attention.self.{part}").view(rows, length, self._heads, -1).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        x = self._norm(x + self._linear(mixed, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
        inner = functional.gelu(self._linear(x, f"{name}.intermediate.dense"))
        return self._norm(x + self._linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return functional.layer_norm(x, (self.dimension,), weight, bias, self._epsilon)
