"""Turn the source of a model, as written in a config, into a folder with its files."""

from __future__ import annotations

import os
import re
from pathlib import Path

from deployments.models import recipes, store
from deployments.models.errors import InvalidSourceError, MissingFilesError, UnavailableModelError
from deployments.models.store import Progress

_REMOTE = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt")
# Other formats of the same weights, which no engine here reads and which can double the download.
_NOT_NEEDED = ["*.gguf", "*.onnx", "onnx/*", "*.h5", "*.msgpack", "*.tflite", "original/*", "*.pth", "openvino/*"]


def cache_root() -> Path:
    """The cache folder: `$POINTSMAN_CACHE`, else `~/.cache/pointsman`."""
    return Path(os.environ.get("POINTSMAN_CACHE") or Path.home() / ".cache" / "pointsman").expanduser()


def resolve(source: str, cache: Path | None, progress: Progress) -> Path:
    """Return the folder that holds the files of a model, fetching or building it first when needed.

    `source` is `hf:org/name[@revision]`, `path:/dir` or `embedded:dense|sparse|mini|encoder`. `cache` is the folder
    for embedded models (None: `cache_root()`); downloads go where huggingface_hub keeps them (`HF_HOME`).
    `progress` is called with a message and the fraction done, 0 to 1.

    Raises a ModelError whose message says what to do.
    """
    scheme, separator, rest = source.partition(":")
    if separator and scheme == "hf":
        return _remote(rest, progress)
    if separator and scheme == "path":
        return _local(rest)
    if separator and scheme == "embedded":
        return recipes.obtain(rest, (cache or cache_root()) / "models", progress)
    raise InvalidSourceError(
        f"{source!r} is not the source of a model", "Write hf:org/name[@revision], path:/dir or embedded:name"
    )


def check_folder(folder: Path) -> None:
    """Raise MissingFilesError when a folder lacks a model's config, tokenizer or weights."""
    remedy = "Point the source at a folder in Hugging Face layout (config.json, tokenizer, weights)"
    if not folder.is_dir():
        raise MissingFilesError(f"{folder} is not a folder", remedy)
    missing = []
    if not (folder / "config.json").is_file():
        missing.append("config.json")
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        missing.append("a tokenizer (tokenizer.json, tokenizer.model or a vocabulary)")
    if not any(next(folder.glob(pattern), None) for pattern in _WEIGHTS):
        missing.append("weights (*.safetensors or *.bin)")
    if missing:
        raise MissingFilesError(f"{folder} lacks {' and '.join(missing)}", remedy)


def _local(rest: str) -> Path:
    if not rest:
        raise InvalidSourceError("path: names no folder", "Write path:/dir")
    folder = Path(rest).expanduser().absolute()
    check_folder(folder)
    return folder


def _remote(rest: str, progress: Progress) -> Path:
    match = _REMOTE.fullmatch(rest)
    if match is None:
        raise InvalidSourceError(f"hf:{rest} names no repository", "Write hf:org/name or hf:org/name@revision")
    repository, revision = match["repository"], match["revision"]
    # Imported here: every other source works without it, and it takes half a second.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    progress(f"{repository}: downloading", 0.0)
    try:
        folder = Path(snapshot_download(repository, revision=revision, ignore_patterns=_NOT_NEEDED))
    except GatedRepoError as error:
        remedy = "Accept its terms on huggingface.co, then run `hf auth login` or set HF_TOKEN"
        raise UnavailableModelError(f"{repository} needs permission", remedy) from error
    except RevisionNotFoundError as error:
        raise UnavailableModelError(
            f"{repository} has no revision {revision!r}", "Check the part after the @ in the source"
        ) from error
    except RepositoryNotFoundError as error:
        remedy = "Check the spelling; for a private repository set HF_TOKEN"
        raise UnavailableModelError(f"there is no repository {repository} on Hugging Face", remedy) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        remedy = (
            "Connect to the network and unset HF_HUB_OFFLINE, or copy the model here and use path:/dir, "
            "or use an embedded: model, which needs no network"
        )
        problem = f"{repository} is not in the local cache and cannot be downloaded ({type(error).__name__})"
        raise UnavailableModelError(problem, remedy) from error
    check_folder(folder)
    progress(f"{repository}: ready", 1.0)
    return folder


def verify(source: str, cache: Path | None, progress: Progress) -> Path:
    """Resolve a source, then check it in full: checksums of embedded models, presence of files of the others.

    Raises DamagedModelError when an embedded model's files differ from those that were built.
    """
    folder = resolve(source, cache, progress)
    if source.startswith("embedded:"):
        store.verify(folder)
    return folder
