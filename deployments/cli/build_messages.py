"""What the child process that builds models tells the command line, one JSON object a line."""

from __future__ import annotations

import msgspec


class Building(msgspec.Struct, frozen=True, tag="building"):
    """Work on a model goes on."""

    model: str
    message: str
    fraction: float
    """Done, 0 to 1."""


class Built(msgspec.Struct, frozen=True, tag="built"):
    """The files of a model are in `path`."""

    model: str
    path: str


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """A model cannot be had."""

    model: str
    problem: str
    remedy: str


class Job(msgspec.Struct, frozen=True):
    """What the child is to do, in this order."""

    sources: dict[str, str]
    """Source by name of model."""
    verify: bool = False
    """Whether to compare every checksum as well."""


BuildMessage = Building | Built | Refused
