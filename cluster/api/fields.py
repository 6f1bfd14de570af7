"""Reading typed fields out of a parsed body. A field that is null counts as absent, as OpenAI's clients send it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping
from typing import Final, TypeVar

from cluster.api.errors import ApiError, bad_request
from cluster.api.json_body import JsonObject, JsonValue

T = TypeVar("T")

_ORDINALS: Final = {1: "1st", 2: "2nd", 3: "3rd"}


class Fields:
    """The fields of one object of the body. `path` is where the object stands, for `param` in errors."""

    __slots__ = ("_path", "_values")

    def __init__(self, values: JsonObject, path: str = "") -> None:
        self._values = values
        self._path = path

    def allow(self, known: Collection[str], refused: Mapping[str, str] | None = None) -> None:
        """Refuses every field outside `known`. Those in `refused` are named with the reason given there.

        The name of any other field is the caller's text and is not repeated.
        """
        for position, name in enumerate(self._values, start=1):
            if name in known:
                continue
            if refused is not None and (reason := refused.get(name)):
                if self._values[name] is None:
                    continue
                raise ApiError(400, "unsupported_parameter", f"`{name}` is not taken: {reason}.", param=self.at(name))
            close = difflib.get_close_matches(name[:64], list(known), n=1)
            hint = f"did you mean `{close[0]}`?" if close else f"known are {', '.join(sorted(known))}."
            where = f"in `{self._path}` " if self._path else ""
            ordinal = _ORDINALS.get(position, f"{position}th")
            raise bad_request(
                self._path or None, f"The {ordinal} field {where}is not known: {hint}", "unknown_parameter"
            )

    def at(self, name: str) -> str:
        """The path of field `name`."""
        return f"{self._path}.{name}" if self._path else name

    def get(self, name: str) -> JsonValue:
        """The value of `name`, or None."""
        return self._values.get(name)

    def boolean(self, name: str) -> bool | None:
        """A boolean field."""
        value = self._values.get(name)
        if value is None or isinstance(value, bool):
            return value
        raise bad_request(self.at(name), f"`{self.at(name)}` must be true or false.", "invalid_type")

    def integer(self, name: str, low: int, high: int) -> int | None:
        """An integer field in `low` to `high`, both included."""
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise bad_request(self.at(name), f"`{self.at(name)}` must be an integer.", "invalid_type")
        if not low <= value <= high:
            raise bad_request(self.at(name), f"`{self.at(name)}` must be {low} to {high}.")
        return value

    def number(self, name: str, low: float, high: float, *, above: bool = False) -> float | None:
        """A number field in `low` to `high`; with `above`, `low` itself is out."""
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise bad_request(self.at(name), f"`{self.at(name)}` must be a number.", "invalid_type")
        if not low <= value <= high or (above and value == low):
            bounds = f"above {low:g} and at most {high:g}" if above else f"{low:g} to {high:g}"
            raise bad_request(self.at(name), f"`{self.at(name)}` must be {bounds}.")
        return float(value)

    def string(self, name: str, max_bytes: int, *, empty: bool = True) -> str | None:
        """A text field of at most `max_bytes` bytes of UTF-8."""
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise bad_request(self.at(name), f"`{self.at(name)}` must be a string.", "invalid_type")
        if byte_length(value) > max_bytes:
            raise bad_request(
                self.at(name), f"`{self.at(name)}` must have at most {max_bytes} bytes.", "string_too_long"
            )
        if not value and not empty:
            raise bad_request(self.at(name), f"`{self.at(name)}` must not be empty.")
        return value

    def choice(self, name: str, allowed: tuple[str, ...]) -> str | None:
        """A text field with one of the values in `allowed`."""
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or value not in allowed:
            raise bad_request(self.at(name), f"`{self.at(name)}` must be one of: {', '.join(allowed)}.")
        return value

    def array(self, name: str, max_items: int, *, min_items: int = 0) -> list[JsonValue] | None:
        """An array field of `min_items` to `max_items` items."""
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise bad_request(self.at(name), f"`{self.at(name)}` must be an array.", "invalid_type")
        if not min_items <= len(value) <= max_items:
            raise bad_request(self.at(name), f"`{self.at(name)}` must have {min_items} to {max_items} items.")
        return value

    def object(self, name: str) -> Fields | None:
        """An object field."""
        value = self._values.get(name)
        return None if value is None else as_object(value, self.at(name))

    def raw(self) -> JsonObject:
        """The object itself."""
        return self._values


def as_object(value: JsonValue, path: str) -> Fields:
    """`value` as fields. Raises `ApiError` if it is no object."""
    if not isinstance(value, dict):
        raise bad_request(path, f"`{path}` must be an object.", "invalid_type")
    return Fields(value, path)


def required(value: T | None, path: str) -> T:
    """`value`. Raises `ApiError` if it is absent."""
    if value is None:
        raise bad_request(path, f"`{path}` is missing.", "missing_required_parameter")
    return value


def byte_length(text: str) -> int:
    """Bytes of `text` in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def json_bytes(value: JsonValue) -> int:
    """Bytes of `value` as compact JSON."""
    return byte_length(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
