"""Makes the config of a cluster with one model out of a model's source and a handful of numbers."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import yaml

from cluster.config.base import KNOWN_ROLES, Kind
from cluster.config.cluster import ClusterConfig
from cluster.config.load import ConfigError, parse_config
from cluster.config.model import SOURCE_PATTERN
from deployments.cli.errors import CliError, ExitCode
from deployments.cli.place import require_state_directory

ROLES: Final = tuple(role for role in KNOWN_ROLES if role != "embedding")
MIN_KV_BYTES: Final = 64 * 2**20
MAX_KV_BYTES: Final = 4 * 2**30
MAX_DEFAULT_LENGTH: Final = 4096
"""Tokens of a sequence on a machine without a GPU, unless asked for otherwise or the model holds less."""

_CPU_BLOCK_TOKENS: Final = 128
_BYTES_PER_NUMBER: Final = (
    4  # float32, which a CPU may take instead of 16 bits; then the pool holds more than asked for
)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_EMBEDDED_KINDS: Final = {"dense": Kind.DENSE, "sparse": Kind.SPARSE, "mini": Kind.MINI}


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asked for; None: our choice."""

    source: str
    kind: Kind | None
    kv_window: int | None
    batch_size: int
    max_model_len: int | None
    port: int
    name: str | None


class Shape(msgspec.Struct, frozen=True):
    """What is used of a checkpoint's `config.json`."""

    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    hidden_size: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int | None = None

    @property
    def kv_bytes_per_token(self) -> int | None:
        """Bytes of keys and values of one token in float32, None for an architecture that does not say."""
        heads = self.num_key_value_heads or self.num_attention_heads
        width = self.head_dim
        if width is None and self.hidden_size is not None and self.num_attention_heads:
            width = self.hidden_size // self.num_attention_heads
        if self.num_hidden_layers is None or heads is None or width is None:
            return None
        return 2 * self.num_hidden_layers * heads * width * _BYTES_PER_NUMBER


def source_of(model: str) -> str:
    """The source that a user means: a source as in a config, a folder, or a Hugging Face id. Raises `CliError`."""
    if model.partition(":")[0] in ("embedded", "hf", "path") and ":" in model:
        source = model
        if source.startswith("path:"):
            source = f"path:{Path(source.removeprefix('path:')).expanduser().absolute()}"
    elif model and Path(model).expanduser().is_dir():
        source = f"path:{Path(model).expanduser().absolute()}"
    elif _REPOSITORY.fullmatch(model):
        source = f"hf:{model}"
    else:
        source = ""
    if not re.fullmatch(SOURCE_PATTERN, source):
        raise CliError(
            f"{model} is no model: there is no such folder, and it is no source",
            "Write embedded:dense, hf:ORG/NAME, path:/DIR, ORG/NAME or a folder.",
            ExitCode.USAGE,
        )
    if source == "embedded:encoder":
        raise CliError(
            "an encoder alone cannot chat",
            "Serve it beside a chat model: see infra/clusters/local.yaml, and `pointsman up --config FILE`.",
            ExitCode.USAGE,
        )
    return source


def name_of(source: str) -> str:
    """A model name made of the source's last part."""
    scheme, _, rest = source.partition(":")
    last = (rest.partition("@")[0] if scheme == "hf" else rest).rstrip("/").rpartition("/")[2]
    name = re.sub(r"[^a-z0-9._-]+", "-", last.lower()).strip("-._")[:64]
    return f"{name}-model" if name in (*KNOWN_ROLES, "auto") else name or "model"


def read_shape(folder: Path) -> Shape:
    """What the checkpoint says of itself; empty where it says nothing that is understood."""
    try:
        data = json.loads((folder / "config.json").read_bytes())
        text = data.get("text_config", data) if isinstance(data, dict) else {}
        return msgspec.convert(text, Shape)
    except (OSError, ValueError):
        return Shape()


def config_text(wish: Wish, shape: Shape, *, accelerated: bool) -> str:
    """The config as YAML. On a CPU the KV pool is made to hold the whole batch, each sequence at its full window."""
    length = wish.max_model_len
    if length is None and not accelerated:
        length = min(shape.max_position_embeddings or MAX_DEFAULT_LENGTH, MAX_DEFAULT_LENGTH)
        if wish.kv_window is not None:
            length = max(length, min(wish.kv_window, shape.max_position_embeddings or wish.kv_window))
    scheme, _, rest = wish.source.partition(":")
    kind = wish.kind or (_EMBEDDED_KINDS.get(rest, Kind.DENSE) if scheme == "embedded" else Kind.DENSE)
    engine: dict[str, object] = {"max_num_seqs": wish.batch_size}
    if length is not None:
        engine["max_model_len"] = length
    if wish.kv_window is not None:
        engine["kv_window_tokens"] = wish.kv_window
    if scheme == "embedded":
        engine["tool_parser"] = "hermes"
    if not accelerated:
        # Compiling takes more than a minute here and gains little.
        engine["enforce_eager"] = True
        engine["kv_cache_bytes"] = _pool_bytes(shape, wish, length)
    replicas: dict[str, object] = {"gpus": 1} if accelerated else {}
    replicas["max_ongoing_requests"] = max(64, 2 * wish.batch_size)
    name = wish.name or name_of(wish.source)
    document = {
        "name": re.sub(r"[^a-z0-9-]", "-", name).strip("-") or "pointsman",
        "models": {
            name: {
                "kind": kind.value,
                "roles": list(ROLES),
                "source": wish.source,
                "engine": engine,
                "replicas": replicas,
            }
        },
        "ingress": {"port": wish.port},
    }
    return yaml.safe_dump(document, sort_keys=False)


def checked(text: str) -> ClusterConfig:
    """The config, checked. Raises `CliError` that speaks of the options that it was made of."""
    try:
        return parse_config(text, "the options")
    except ConfigError as error:
        raise CliError(
            "these options do not go together:\n" + "\n".join(f"  {mistake}" for mistake in error.mistakes),
            "--kv-window is kv_window_tokens, --batch-size is max_num_seqs, --max-model-len is max_model_len.",
            ExitCode.USAGE,
        ) from None


def write_config(text: str, state_dir: Path) -> Path:
    """Keep the config where the cluster keeps its state; one file per content, so a running cluster's never changes."""
    require_state_directory(state_dir)
    path = state_dir / f"serve-{hashlib.sha256(text.encode()).hexdigest()[:12]}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def has_gpu() -> bool:
    """Whether this machine has a GPU that engines here can use."""
    return Path("/dev/nvidia0").exists()


def _pool_bytes(shape: Shape, wish: Wish, length: int | None) -> int:
    per_token = shape.kv_bytes_per_token
    if per_token is None or length is None:
        return MAX_KV_BYTES // 4
    tokens = min(wish.kv_window or length, length)
    # A sequence's last block is rarely full, and the engine keeps one block for itself.
    blocks = wish.batch_size * (-(-tokens // _CPU_BLOCK_TOKENS) + 1) + 1
    return min(MAX_KV_BYTES, max(MIN_KV_BYTES, blocks * _CPU_BLOCK_TOKENS * per_token))
