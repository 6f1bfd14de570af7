"""What would change in Grafana, as a unified difference."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from typing import Any, Final

Json = dict[str, Any]

_NEVER_OURS: Final = frozenset({"schemaVersion"})
"""Grafana raises it when it stores a dashboard in a newer form of its own."""


def like(theirs: object, ours: object) -> object:
    """Of `theirs` what `ours` says anything about: Grafana adds keys of its own, and these are no difference.

    Lists are compared item by item; those that are longer on one side differ.
    """
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return {key: like(theirs[key], value) for key, value in ours.items() if key in theirs}
    if isinstance(theirs, list) and isinstance(ours, list):
        same = [like(their, our) for their, our in zip(theirs, ours, strict=False)]
        return same + theirs[len(ours) :]
    return theirs


def comparable(ours: Json, theirs: Json) -> tuple[Json, Json]:
    """Both without what is no difference."""
    mine = {key: value for key, value in ours.items() if key not in _NEVER_OURS}
    kept = like(theirs, mine)
    return mine, kept if isinstance(kept, dict) else {}


def unified(name: str, theirs: Json | None, ours: Json) -> Iterator[str]:
    """Lines from what Grafana has (None: nothing) to what it is to have."""
    before = [] if theirs is None else _lines(theirs)
    source = "/dev/null" if theirs is None else f"grafana/{name}"
    return difflib.unified_diff(before, _lines(ours), source, f"pointsman/{name}", lineterm="")


def _lines(value: Json) -> list[str]:
    return json.dumps(value, indent=2, sort_keys=True).splitlines()
