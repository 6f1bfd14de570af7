"""Sources are parsed strictly and every refusal says what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deployments.models import recipes, sources
from deployments.models.errors import (
    InvalidSourceError,
    MissingFilesError,
    MissingPackageError,
    ModelError,
    UnavailableModelError,
)
from deployments.models.recipes import RECIPES, Recipe, recipe_hash


def _silent(message: str, fraction: float) -> None:
    """A progress callback that says nothing."""


@pytest.mark.parametrize(
    "source",
    [
        "",
        "dense",
        "hf",
        "hf:",
        "hf:name",
        "hf:a/b/c",
        "hf:a/b@",
        "hf:../x/y",
        "s3:bucket/x",
        "path:",
        "embedded:",
        "embedded:huge",
    ],
)
def test_a_source_that_cannot_be_read_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSourceError) as caught:
        sources.resolve(source, tmp_path, _silent)
    assert caught.value.remedy in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_embedded_model_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InvalidSourceError, match="dense, sparse, mini, encoder"):
        sources.resolve("embedded:huge", tmp_path, _silent)


def _model(folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_bytes(b"{}")
    return folder


def test_a_whole_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = _model(tmp_path / "m")
    assert sources.resolve(f"path:{folder}", None, _silent) == folder


@pytest.mark.parametrize(
    ("missing", "named"),
    [("config.json", "config.json"), ("tokenizer.json", "a tokenizer"), ("model.safetensors", "weights")],
)
def test_what_a_folder_lacks_is_named(tmp_path: Path, missing: str, named: str) -> None:
    folder = _model(tmp_path / "m")
    (folder / missing).unlink()
    with pytest.raises(MissingFilesError, match=f"lacks {named}"):
        sources.resolve(f"path:{folder}", None, _silent)


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFilesError, match="is not a folder"):
        sources.resolve(f"path:{tmp_path / 'none'}", None, _silent)


def test_a_remote_model_without_a_network_says_what_to_do(tmp_path: Path) -> None:
    program = (
        "from deployments.models import sources, errors\n"
        "try:\n"
        "    sources.resolve('hf:nobody/nothing@main', None, lambda message, fraction: None)\n"
        "except errors.UnavailableModelError as error:\n"
        "    print(error)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert "nobody/nothing is not in the local cache" in done.stdout
    assert "HF_HUB_OFFLINE" in done.stdout and "path:/dir" in done.stdout


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("GatedRepoError", "needs permission"),
        ("RevisionNotFoundError", "has no revision 'v9'"),
        ("RepositoryNotFoundError", "there is no repository a/b"),
        ("LocalEntryNotFoundError", "cannot be downloaded"),
    ],
)
def test_every_refusal_of_the_hub_is_translated(monkeypatch: pytest.MonkeyPatch, error: str, words: str) -> None:
    import huggingface_hub
    from huggingface_hub import errors as hub

    def refuse(*args: object, **kwargs: object) -> str:
        raise getattr(hub, error).__new__(getattr(hub, error))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UnavailableModelError, match=words):
        sources.resolve("hf:a/b@v9", None, _silent)


def test_a_download_is_asked_for_by_its_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    asked: list[tuple[str, str | None]] = []
    folder = _model(tmp_path / "snapshot")

    def fetch(repository: str, revision: str | None, ignore_patterns: list[str]) -> str:
        asked.append((repository, revision))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert sources.resolve("hf:org/name@v1.2", None, _silent) == folder
    assert sources.resolve("hf:org/name", None, _silent) == folder
    assert asked == [("org/name", "v1.2"), ("org/name", None)]


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POINTSMAN_CACHE", str(tmp_path / "elsewhere"))
    assert sources.cache_root() == tmp_path / "elsewhere"
    monkeypatch.delenv("POINTSMAN_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sources.cache_root() == tmp_path / ".cache" / "pointsman"


def _toy(name: str, needs: tuple[str, ...] = (), parameters: str = "", package: str = "pydantic") -> Recipe:
    def write(folder: Path, inputs: object, progress: object) -> None:
        (folder / "made.txt").write_text(f"{name} from {sorted(inputs) if isinstance(inputs, dict) else ()}")

    return Recipe(name, ("errors.py",), (package,), parameters, needs, write)


def test_what_a_model_needs_is_built_first(tmp_path: Path) -> None:
    table = {"base": _toy("base"), "top": _toy("top", needs=("base",))}
    folder = recipes.obtain("top", tmp_path, _silent, table)
    assert (folder / "made.txt").read_text() == "top from ['base']"
    assert (tmp_path / f"base-{recipe_hash('base', table)}").is_dir()


def test_the_hash_follows_parameters_and_inputs() -> None:
    table = {"base": _toy("base"), "top": _toy("top", needs=("base",))}
    changed_input = {**table, "base": _toy("base", parameters="other")}
    changed_parameter = {**table, "top": _toy("top", needs=("base",), parameters="other")}
    hashes = {recipe_hash("top", each) for each in (table, changed_input, changed_parameter)}
    assert len(hashes) == 3


def test_a_missing_input_package_says_how_to_install_it() -> None:
    with pytest.raises(MissingPackageError, match="pip install --no-deps no-such-package"):
        recipe_hash("base", {"base": _toy("base", package="no-such-package")})


def test_every_recipe_lists_sources_that_exist() -> None:
    for name in RECIPES:
        assert len(recipe_hash(name)) == 12


def test_resolving_imports_no_engine() -> None:
    program = (
        "import sys\n"
        "from deployments.models import sources\n"
        "loaded = {'vllm', 'ray', 'torch', 'transformers'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": ":".join(sys.path), "PATH": ""}, check=True)


def test_every_error_is_a_model_error() -> None:
    assert issubclass(UnavailableModelError, ModelError) and issubclass(InvalidSourceError, ModelError)
