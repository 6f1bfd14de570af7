"""A signal together with where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    """One signal. Nothing is made up for what nobody told: `value` is None then, and the words say so."""

    value: T | None
    source: str
    """Who said so: `caller`, `prompt`, `encoder`, `lexical`, `replicas` or `answers`."""
    age_s: float = 0.0
    """Seconds since it was true."""
    cost_s: float = 0.0
    """Seconds that it took to get."""
    note: str = ""
    """Why a better source was not asked, or did not answer; empty: there is none."""

    def __str__(self) -> str:
        if self.value is None:
            return "missing"
        value = f"{self.value:g}" if isinstance(self.value, float) else str(self.value)
        age = f", {self.age_s:.1f} s old" if self.age_s else ""
        return f"{value} ({self.source}{age}{f': {self.note}' if self.note else ''})"
