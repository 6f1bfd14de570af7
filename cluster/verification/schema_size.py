"""How much work a JSON schema is, before anything is validated with it."""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

from cluster.api.json_body import JsonObject, JsonValue

MAX_SCHEMA_NODES: Final = 2000
MAX_SCHEMA_DEPTH: Final = 24
_NOT_TAKEN: Final = frozenset(
    {"$dynamicRef", "$recursiveRef", "$anchor", "$dynamicAnchor", "$id", "unevaluatedItems", "unevaluatedProperties"}
)


class SchemaTooLargeError(ValueError):
    """Validating with the schema could take long. The message completes a sentence that begins with its name."""


def schema_nodes(schema: JsonObject) -> int:
    """Nodes (a count) of `schema` with every reference written out, which bounds the work per value of an instance.

    References that lead back to themselves, and keywords that look at a value more than once, are not taken: with either
    of them the work may double with every level. Raises `SchemaTooLargeError`.
    """
    return _Counter(schema).count(schema, 1)


class _Counter:
    def __init__(self, root: JsonObject) -> None:
        self._root = root
        self._targets: dict[str, int] = {}
        self._open: set[str] = set()

    def count(self, value: JsonValue, depth: int) -> int:
        if depth > MAX_SCHEMA_DEPTH:
            raise SchemaTooLargeError(f"must be nested at most {MAX_SCHEMA_DEPTH} levels deep, references included")
        total = 1
        if isinstance(value, dict):
            for keyword, inner in value.items():
                if keyword in _NOT_TAKEN:
                    raise SchemaTooLargeError(f"must not use `{keyword}`")
                if keyword == "$ref" and isinstance(inner, str):
                    total += self._reference(inner, depth)
                else:
                    # Definitions and plain values count, too: a property may have the name of any keyword.
                    total += self.count(inner, depth + 1)
        elif isinstance(value, list):
            for inner in value:
                total += self.count(inner, depth + 1)
        if total > MAX_SCHEMA_NODES:
            raise SchemaTooLargeError(f"must come to at most {MAX_SCHEMA_NODES} parts, references written out")
        return total

    def _reference(self, reference: str, depth: int) -> int:
        if reference in self._open:
            raise SchemaTooLargeError("must not refer back to itself")
        if reference not in self._targets:
            self._open.add(reference)
            self._targets[reference] = self.count(self._target(reference), depth + 1)
            self._open.discard(reference)
        return self._targets[reference]

    def _target(self, reference: str) -> JsonValue:
        if reference != "#" and not reference.startswith("#/"):
            raise SchemaTooLargeError("must refer to its own parts alone (`#/...`)")
        at: JsonValue = self._root
        for step in unquote(reference).split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(at, dict) and name in at:
                at = at[name]
            elif isinstance(at, list) and name.isdecimal() and len(name) < 6 and int(name) < len(at):
                at = at[int(name)]
            else:
                raise SchemaTooLargeError("must not refer to a part that it does not have")
        return at
