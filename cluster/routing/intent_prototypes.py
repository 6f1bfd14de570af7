"""What a request is for, by the meaning of its words: the nearest of one prototype per intent, in the space of a sentence encoder.

A prototype is the mean of the unit vectors of labelled prompts (Snell et al. 2017, "Prototypical Networks for Few-shot Learning").
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from cluster.routing.reading import Reading

PROTOTYPES_FILE: Final = Path(__file__).with_name("intent_prototypes.json")

LEXICAL_WEIGHT: Final = 0.2
"""What a plain sign of the words adds to the cosine of its intent. Chosen by cross-validation on the prompts fitted on."""

LOOKED_AT: Final = 256
"""Characters of a prompt that are encoded: about 64 tokens. What is asked for mostly stands at the beginning."""

Vector = npt.NDArray[np.float32]


class PrototypeError(ValueError):
    """The prototypes cannot be read, or are another encoder's. The message says what to do."""


@dataclass(frozen=True)
class Prototypes:
    """Prototypes of one encoder."""

    encoder: str
    """Source of the encoder, as in a config: vectors of another one mean nothing here."""
    intents: tuple[str, ...]
    vectors: Vector
    """Unit vectors `[intents, dimension]`."""

    def nearest(self, vector: Vector, lexical: Reading[str]) -> Reading[str]:
        """The intent of a prompt with this vector `[dimension]`, to which a sign of its words adds. Raises `PrototypeError`."""
        if vector.shape != self.vectors.shape[1:]:
            message = (
                f"the encoder's vectors have {vector.shape[-1]} dimensions, the prototypes {self.vectors.shape[1]}"
            )
            raise PrototypeError(f"{message}; fit them anew: python -m loadtests.intents --fit")
        length = float(np.linalg.norm(vector))
        if not length > 0:
            return lexical
        scores = self.vectors @ (vector / length)
        if lexical.value in self.intents:
            scores[self.intents.index(lexical.value)] += LEXICAL_WEIGHT
        return Reading(self.intents[int(np.argmax(scores))], "encoder")

    def to_json(self) -> str:
        """For `PROTOTYPES_FILE`."""
        vectors = {
            name: [round(float(x), 4) for x in vector] for name, vector in zip(self.intents, self.vectors, strict=True)
        }
        return json.dumps({"encoder": self.encoder, "prototypes": vectors}, separators=(",", ":")) + "\n"


def read_prototypes(path: Path = PROTOTYPES_FILE) -> Prototypes:
    """The prototypes in a file. Raises `PrototypeError`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        intents = tuple(content["prototypes"])
        vectors = np.array([content["prototypes"][name] for name in intents], dtype=np.float32)
        return Prototypes(str(content["encoder"]), intents, _unit(vectors))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise PrototypeError(f"{path.name} cannot be read ({type(error).__name__})") from None


def fit_prototypes(encoder: str, vectors: Vector, intents: Sequence[str]) -> Prototypes:
    """Prototypes of labelled prompts: `vectors` `[prompts, dimension]` and their intents."""
    unit = _unit(vectors)
    by_intent: Mapping[str, Vector] = {
        name: unit[[known == name for known in intents]].mean(axis=0) for name in sorted(set(intents))
    }
    return Prototypes(encoder, tuple(by_intent), _unit(np.stack(list(by_intent.values()))))


def _unit(vectors: Vector) -> Vector:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), dtype=np.float32)
