"""Errors of the model store. Each one says what to do next."""

from __future__ import annotations


class ModelError(Exception):
    """A model cannot be used. `problem` says what is wrong, `remedy` what the user can do about it."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}. {remedy}")
        self.problem = problem
        self.remedy = remedy


class InvalidSourceError(ModelError):
    """The source is not written as `hf:org/name[@revision]`, `path:/dir` or `embedded:name`."""


class MissingFilesError(ModelError):
    """A model folder lacks its config, tokenizer or weights."""


class UnavailableModelError(ModelError):
    """A remote model cannot be had: no network, no such repository or revision, or no permission."""


class MissingPackageError(ModelError):
    """A Python package that carries the weights of an embedded model is not installed."""


class DamagedModelError(ModelError):
    """The files of a built model differ from those that were built."""


class BuildError(ModelError):
    """The build of an embedded model failed."""
