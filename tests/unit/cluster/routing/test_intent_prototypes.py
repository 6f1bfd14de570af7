from pathlib import Path

import numpy as np
import pytest

from cluster.routing.intent import Intent
from cluster.routing.intent_prototypes import PrototypeError, fit_prototypes, read_prototypes
from cluster.routing.reading import Reading

SILENT: Reading[str] = Reading(None, "lexical")
PROTOTYPES = fit_prototypes(
    "embedded:encoder", np.array([[1, 0], [0.9, 0.1], [0, 1]], dtype=np.float32), ["code", "code", "math"]
)


def test_the_nearest_prototype_tells_the_intent() -> None:
    assert PROTOTYPES.nearest(np.array([3, 0.2], dtype=np.float32), SILENT) == Reading("code", "encoder")
    assert PROTOTYPES.nearest(np.array([0.1, 5], dtype=np.float32), SILENT).value == "math"


def test_a_sign_of_the_words_decides_between_near_ones_only() -> None:
    words = Reading("math", "lexical")
    assert PROTOTYPES.nearest(np.array([1, 0.95], dtype=np.float32), SILENT).value == "code"
    assert PROTOTYPES.nearest(np.array([1, 0.95], dtype=np.float32), words).value == "math"
    assert PROTOTYPES.nearest(np.array([1, 0], dtype=np.float32), words).value == "code"


def test_another_encoders_vectors_are_refused_and_an_empty_one_leaves_it_to_the_words() -> None:
    with pytest.raises(PrototypeError, match="3 dimensions, the prototypes 2"):
        PROTOTYPES.nearest(np.ones(3, dtype=np.float32), SILENT)
    words = Reading("math", "lexical")
    assert PROTOTYPES.nearest(np.zeros(2, dtype=np.float32), words) == words


def test_the_shipped_file_knows_every_intent_and_comes_back_from_json(tmp_path: Path) -> None:
    shipped = read_prototypes()
    assert set(shipped.intents) == {intent.value for intent in Intent}
    assert np.allclose(np.linalg.norm(shipped.vectors, axis=1), 1, atol=1e-3)
    path = tmp_path / "again.json"
    path.write_text(shipped.to_json())
    again = read_prototypes(path)
    assert (again.encoder, again.intents) == (shipped.encoder, shipped.intents)
    assert np.allclose(again.vectors, shipped.vectors, atol=1e-3)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"encoder": "e"}', '{"encoder": "e", "prototypes": {"a": [1], "b": [1, 2]}}']
)
def test_a_damaged_file_is_an_error_in_words(tmp_path: Path, content: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(content)
    with pytest.raises(PrototypeError, match="cannot be read"):
        read_prototypes(path)
