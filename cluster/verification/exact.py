"""An answer that is known beforehand."""

from __future__ import annotations

import unicodedata
from typing import Final

from cluster.api.errors import bad_request
from cluster.api.fields import byte_length
from cluster.verification.verdict import MAX_ANSWER_BYTES, Verdict, too_long

NAME: Final = "exact"


def normalised(text: str) -> str:
    """`text` without what does not change its meaning: Unicode form (NFKC), case, runs of white space, those at its ends."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


class ExactCheck:
    """Compares an answer with the one that is expected, both normalised."""

    name = NAME

    def __init__(self, expected: str, path: str = "pointsman.verify.exact") -> None:
        """Raises `ApiError` 400, naming `path`, if what is expected is longer than an answer that is checked."""
        if byte_length(expected) > MAX_ANSWER_BYTES:
            raise bad_request(path, f"`{path}` must have at most {MAX_ANSWER_BYTES} bytes.", "string_too_long")
        self._expected = normalised(expected)

    def judge(self, answer: str) -> Verdict:
        if (refused := too_long(NAME, answer)) is not None:
            return refused
        ok = normalised(answer) == self._expected
        return Verdict(ok, NAME, "the answer is the one expected" if ok else "the answer is not the one expected")
