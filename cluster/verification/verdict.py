"""What a check says of an answer, and what is checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

MAX_ANSWER_BYTES: Final = 262_144
"""Bytes of an answer that is checked; a longer one is not, and counts as not verified."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one check says. `reason` is for people and never holds the caller's or the model's text."""

    ok: bool
    name: str
    """The check: `json_schema`, `regex`, `exact`, `verifier`, `hook` or `two_stage`."""
    reason: str
    score: float | None = None
    """How sure the check is that the answer is right, 0 to 1; None: it says yes or no alone."""


class Check(Protocol):
    """A comparator: the same answer always gets the same verdict. Safe to call on any thread."""

    name: str

    def judge(self, answer: str) -> Verdict:
        """The verdict on `answer`; never raises."""


def too_long(name: str, answer: str) -> Verdict | None:
    """The verdict on an answer over `MAX_ANSWER_BYTES`, None for one that can be checked."""
    # A character has four bytes at most, so most answers need not be encoded to know.
    if len(answer) * 4 <= MAX_ANSWER_BYTES or len(answer.encode(errors="replace")) <= MAX_ANSWER_BYTES:
        return None
    return Verdict(False, name, f"the answer has more than {MAX_ANSWER_BYTES} bytes, too many to be checked")


def all_of(verdicts: tuple[Verdict, ...]) -> Verdict | None:
    """One verdict for several: the first that is not ok, else one that names them all; None without any."""
    if not verdicts:
        return None
    refused = next((verdict for verdict in verdicts if not verdict.ok), None)
    if refused is not None:
        return refused
    if len(verdicts) == 1:
        return verdicts[0]
    scores = [verdict.score for verdict in verdicts if verdict.score is not None]
    names = "+".join(verdict.name for verdict in verdicts)
    reason = "; ".join(f"{verdict.name}: {verdict.reason}" for verdict in verdicts)
    return Verdict(True, names, reason, min(scores, default=None))
