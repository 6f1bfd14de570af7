"""From YAML text to a checked config, or to the list of all that is wrong with it."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Iterable
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cluster.config.base import Section
from cluster.config.cluster import MISTAKES, ClusterConfig
from cluster.config.mistakes import ConfigError, Mistake
from cluster.config.yaml_document import Plain, join, read_yaml

__all__ = ["ConfigError", "config_schema", "parse_config"]

_MESSAGES: Final = {
    "extra_forbidden": "this key is not known",
    "missing": "this is missing",
    "finite_number": "this must be a finite number",
}


def parse_config(
    text: str, source: str, also: Callable[[ClusterConfig], Iterable[Mistake]] | None = None
) -> ClusterConfig:
    """The config in `text` (YAML). `source` is the name of the file, for messages; `also` finds further mistakes.

    Raises `ConfigError` with every mistake that was found, each with its path and, where known, its line. Messages
    never repeat values.
    """
    document = read_yaml(text, source)
    if not isinstance(document.value, dict):
        raise ConfigError(source, (Mistake("", "the file must be a mapping of sections", "see docs/configuration.md"),))
    found = list(document.mistakes)
    config, mistakes = _validate(document.value)
    found.extend(mistakes)
    if config is not None and also is not None:
        found.extend(also(config))
    if config is not None and not found:
        return config
    located: dict[tuple[str, str], Mistake] = {}
    for mistake in found:
        line = mistake.line if mistake.line is not None else _line(mistake.path, document.lines)
        located.setdefault(
            (mistake.path, mistake.message), Mistake(mistake.path, mistake.message, mistake.remedy, line)
        )
    raise ConfigError(source, tuple(located.values()))


def config_schema() -> dict[str, Any]:
    """The JSON schema of the config."""
    return ClusterConfig.model_json_schema()


def _validate(value: dict[str, Plain]) -> tuple[ClusterConfig | None, tuple[Mistake, ...]]:
    """Validates all fields, then what they mean together, as far as the valid ones tell."""
    try:
        return _build(value), ()
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
    crossed = _cross_field(details)
    if crossed:
        return None, crossed
    mistakes = tuple(_mistake(detail) for detail in details)
    return None, (*mistakes, *_behind(value, details))


def _build(value: dict[str, Plain]) -> ClusterConfig:
    # JSON is the input form in which strict validation takes lists for tuples and strings for enums, but no "1" for 1.
    return ClusterConfig.model_validate_json(json.dumps(_finite(value)), strict=True)


def _finite(value: Plain) -> Plain:
    """`value` with floats past the range of a double as text, which no number field takes."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return "infinity" if isinstance(value, float) and math.isinf(value) else value


def _cross_field(details: list[ErrorDetails]) -> tuple[Mistake, ...]:
    return tuple(
        mistake for detail in details if detail["type"] == MISTAKES for mistake in detail.get("ctx", {})["mistakes"]
    )


def _behind(value: dict[str, Plain], details: list[ErrorDetails]) -> tuple[Mistake, ...]:
    """Cross-field mistakes that would otherwise show only after the field mistakes were mended.

    The faulty fields are taken out; what the checks then say about neighbours of these fields is not believed.
    """
    if any(_hides(detail) for detail in details):
        return ()
    steps = [_steps(detail) for detail in details]
    pruned: Plain = json.loads(json.dumps(_finite(value)))
    for step in sorted(steps, key=len, reverse=True):
        _remove(pruned, step)
    try:
        _build(pruned if isinstance(pruned, dict) else {})
    except ValidationError as error:
        parents = {".".join(map(str, step[:-1])) for step in steps}
        crossed = _cross_field(error.errors(include_url=False, include_input=False))
        return tuple(mistake for mistake in crossed if mistake.path.rpartition(".")[0] not in parents)
    return ()


def _hides(detail: ErrorDetails) -> bool:
    """Whether without the faulty field a model or its roles would be gone, and others seem to lack them."""
    steps = _steps(detail)
    return not steps or (steps[0] == "models" and len(steps) < 4 and detail["type"] != "extra_forbidden")


def _remove(value: Plain, step: tuple[str | int, ...]) -> None:
    holder: Any = value
    for key in step[:-1]:
        holder = holder.get(key) if isinstance(holder, dict) else None
        if holder is None:
            return
    if isinstance(holder, dict):
        holder.pop(step[-1], None)


def _steps(detail: ErrorDetails) -> tuple[str | int, ...]:
    return tuple(step for step in detail["loc"] if step != "[key]")


def _mistake(detail: ErrorDetails) -> Mistake:
    path = ""
    for step in _steps(detail):
        path = join(path, step)
    message = _MESSAGES.get(detail["type"]) or detail["msg"][:1].lower() + detail["msg"][1:]
    remedy = _similar(_steps(detail)) if detail["type"] == "extra_forbidden" else None
    return Mistake(path, message, remedy)


def _similar(steps: tuple[str | int, ...]) -> str:
    known = _fields(ClusterConfig, steps[:-1])
    close = difflib.get_close_matches(str(steps[-1]), known, n=1)
    return f"did you mean {close[0]}?" if close else f"the keys here are {', '.join(known)}"


def _fields(section: type[BaseModel], steps: tuple[str | int, ...]) -> list[str]:
    """Names of the fields of the section at `steps` below `section`."""
    if not steps:
        return list(section.model_fields)
    field = section.model_fields.get(str(steps[0]))
    if field is None:
        return []
    options = [field.annotation, *get_args(field.annotation)]
    is_mapping = getattr(field.annotation, "__origin__", None) is dict
    for option in options:
        if isinstance(option, type) and issubclass(option, Section):
            return _fields(option, steps[2:] if is_mapping else steps[1:])
    return []


def _line(path: str, lines: dict[str, int]) -> int | None:
    while path and path not in lines:
        path = path.rpartition(".")[0]
    return lines.get(path) if path else None
