"""What a cluster's config says of the model that is to be measured."""

from __future__ import annotations

from pathlib import Path

from cluster.config.cluster import ClusterConfig
from cluster.config.engine import EngineType
from cluster.config.load import parse_config
from cluster.config.model import ModelConfig


def vllm_model(path: Path, name: str) -> tuple[ClusterConfig, ModelConfig]:
    """The config in a file, and its model of that name, which must run on vLLM.

    Raises `ValueError`, and `ConfigError` for a config with mistakes.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    config = parse_config(text, str(path))
    if name not in config.models:
        raise ValueError(f"{path} has no model {name!r}; it has {', '.join(config.models)}")
    chosen = config.models[name]
    if chosen.source is None or chosen.engine.type is not EngineType.VLLM:
        raise ValueError(f"model {name!r} does not run on vLLM, so there is no bare server of it")
    return config, chosen
