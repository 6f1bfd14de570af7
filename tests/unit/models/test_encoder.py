"""The encoder's own forward pass on a random BERT equals the reference implementation's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from deployments.models.encoder import SentenceEncoder
from deployments.models.errors import MissingFilesError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48,
        max_position_embeddings=20,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path)
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3} | {letter: 4 + n for n, letter in enumerate("abcdefghij")}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 8}')
    return tmp_path


def test_vectors_are_the_reference_model_pooled(folder: Path) -> None:
    encoder = SentenceEncoder(folder, batch_size=2)
    found = encoder.encode(["a b c", "d", "e f"])
    model = BertModel.from_pretrained(folder).eval()
    for text, vector in zip(([2, 4, 5, 6, 3], [2, 7, 3], [2, 8, 9, 3]), found.vectors, strict=True):
        with torch.no_grad():
            mean = model(torch.tensor([text])).last_hidden_state[0].mean(0)
        assert np.allclose(vector, torch.nn.functional.normalize(mean, dim=0).numpy(), atol=1e-5)
    assert found.vectors.shape == (3, 24) and found.vectors.dtype == np.float32
    assert found.tokens == (5, 3, 4) and found.dropped == (0, 0, 0)


def test_long_texts_are_cut_and_counted(folder: Path) -> None:
    encoder = SentenceEncoder(folder)
    found = encoder.encode(["a b c d e f g h i j", "a b c d e f"])
    assert found.tokens == (8, 8) and found.dropped == (4, 0)
    assert np.allclose(found.vectors[0], found.vectors[1], atol=1e-6), "both begin alike and end with the same token"
    assert encoder.count_tokens("a b c d e f g h i j") == 12


def test_nothing_makes_nothing_and_empty_text_makes_a_vector(folder: Path) -> None:
    encoder = SentenceEncoder(folder)
    assert encoder.encode([]).vectors.shape == (0, 24)
    assert np.isclose(np.linalg.norm(encoder.encode([""]).vectors[0]), 1)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "sentence_bert_config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(MissingFilesError, match="embedded:encoder"):
        SentenceEncoder(folder)


def test_another_kind_of_model_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(MissingFilesError, match="holds a llama model"):
        SentenceEncoder(folder)
