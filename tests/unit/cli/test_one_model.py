from __future__ import annotations

import json

import pytest

from cluster.config.base import Kind
from deployments.cli.errors import CliError
from deployments.cli.one_model import Shape, Wish, checked, config_text, name_of, read_shape, source_of

SMALL = Shape(30, 9, 3, 576, None, 8192)


def wish(**changes: object) -> Wish:
    fields = {
        "source": "embedded:dense",
        "kind": None,
        "kv_window": None,
        "batch_size": 8,
        "max_model_len": None,
        "port": 8000,
        "name": None,
    }
    return Wish(**(fields | changes))


@pytest.mark.parametrize(
    ("typed", "source", "name"),
    [
        ("embedded:mini", "embedded:mini", "mini"),
        ("hf:Qwen/Qwen3-0.6B@main", "hf:Qwen/Qwen3-0.6B@main", "qwen3-0.6b"),
        ("Qwen/Qwen3-0.6B", "hf:Qwen/Qwen3-0.6B", "qwen3-0.6b"),
        ("path:/srv/My Model", "path:/srv/My Model", "my-model"),
        ("path:/srv/fast/", "path:/srv/fast", "fast-model"),
    ],
)
def test_sources_and_names(typed, source, name):
    assert source_of(typed) == source
    assert name_of(source) == name


def test_a_folder_is_a_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert source_of("org/name") == f"path:{tmp_path}/org/name"


@pytest.mark.parametrize("typed", ["dense", "https://example.com/x", "hf:one", "embedded:", "embedded:encoder", ""])
def test_what_is_no_model(typed):
    with pytest.raises(CliError) as error:
        source_of(typed)
    assert error.value.code == 2
    assert error.value.remedy


def test_the_window_and_the_batch_size_end_up_in_the_engine():
    config = checked(config_text(wish(kv_window=512, batch_size=4, port=8123), SMALL, accelerated=False))
    model = config.models["dense"]
    assert (model.engine.kv_window_tokens, model.engine.max_num_seqs) == (512, 4)
    assert model.engine.max_model_len == 4096
    assert config.ingress.port == 8123
    assert config.routing.default_role in model.roles
    # 4 sequences of 4 blocks and one to spare each, and the engine's own; 23,040 bytes a token.
    assert model.engine.kv_cache_bytes == max(64 * 2**20, 21 * 128 * SMALL.kv_bytes_per_token)


def test_without_a_window_the_pool_holds_the_batch_at_full_length():
    engine = checked(config_text(wish(batch_size=2), SMALL, accelerated=False)).models["dense"].engine
    assert engine.kv_window_tokens is None
    assert engine.kv_cache_bytes == 67 * 128 * SMALL.kv_bytes_per_token


def test_a_window_beyond_the_default_length_raises_it():
    engine = checked(config_text(wish(kv_window=6000), SMALL, accelerated=False)).models["dense"].engine
    assert engine.max_model_len == 6000


def test_on_a_gpu_the_engine_chooses():
    model = checked(config_text(wish(source="hf:a/b", kind=Kind.SPARSE), Shape(), accelerated=True)).models["b"]
    assert model.kind is Kind.SPARSE
    assert model.replicas.gpus == 1
    assert (model.engine.kv_cache_bytes, model.engine.max_model_len, model.engine.enforce_eager) == (None, None, False)


def test_options_that_do_not_go_together():
    with pytest.raises(CliError, match="kv_window_tokens") as error:
        checked(config_text(wish(kv_window=2048, max_model_len=1024), SMALL, accelerated=False))
    assert error.value.code == 2


def test_the_shape_of_a_checkpoint(tmp_path):
    assert read_shape(tmp_path) == Shape()
    (tmp_path / "config.json").write_text("[]")
    assert read_shape(tmp_path) == Shape()
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 2, "num_attention_heads": 4, "x": 1}))
    assert read_shape(tmp_path).kv_bytes_per_token is None
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"num_hidden_layers": 2, "hidden_size": 64}}))
    assert read_shape(tmp_path).hidden_size == 64
    assert Shape(2, 4, 2, 64, None, None).kv_bytes_per_token == 2 * 2 * 2 * 16 * 4
