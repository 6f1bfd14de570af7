"""Mistakes in a config, each with the path of the field, what is wrong, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake. Never contains a value from the config, which might be a secret."""

    path: str
    """Where, for example `models.dense.replicas.min`; empty for the file as a whole."""
    message: str
    remedy: str | None = None
    line: int | None = None
    """Line in the source, counted from 1, if known."""

    def __str__(self) -> str:
        where = self.path or "the file"
        if self.line is not None:
            where += f" (line {self.line})"
        return f"{where}: {self.message}" + (f"; {self.remedy}" if self.remedy else "")


class ConfigError(ValueError):
    """A config with mistakes in it; `mistakes` has all that were found."""

    def __init__(self, source: str, mistakes: tuple[Mistake, ...]) -> None:
        self.source = source
        self.mistakes = mistakes
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        super().__init__(f"{source}: {count}\n" + "\n".join(f"  {mistake}" for mistake in mistakes))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, tuple[Mistake, ...]]]:
        """Exceptions are pickled by their positional arguments unless told otherwise."""
        return ConfigError, (self.source, self.mistakes)
