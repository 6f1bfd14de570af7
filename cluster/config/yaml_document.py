"""Reading YAML as plain JSON values, with the line of every field and without YAML's traps.

Only what JSON has too is taken: no aliases (which can blow a small file up), no tags, no dates, and `on`, `off`, `yes`
and `no` are words, as in YAML 1.2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import yaml

from cluster.config.mistakes import ConfigError, Mistake

MAX_BYTES: Final = 1_048_576
MAX_DEPTH: Final = 24
MAX_NUMBER_CHARS: Final = 64

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]

_PREFIX: Final = "tag:yaml.org,2002:"
_CORE: Final = (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
)


class _Loader(yaml.SafeLoader):
    """Composes nodes only; what PyYAML would construct from them is not used."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own name
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(problem="aliases and anchors are not taken", problem_mark=event.start_mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_DEPTH} levels deep", problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _tag, _pattern, _first in _CORE:
    _Loader.add_implicit_resolver(_PREFIX + _tag, re.compile(_pattern), _first)


@dataclass(frozen=True, slots=True)
class Document:
    """A document's value, the line (from 1) of each path in it, and what was wrong on the way."""

    value: Plain
    lines: dict[str, int]
    mistakes: tuple[Mistake, ...]


def read_yaml(text: str, source: str) -> Document:
    """The single document in `text`. Raises `ConfigError` if it is no YAML, too large or too deep."""
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise ConfigError(source, (Mistake("", f"the file is larger than {MAX_BYTES} bytes"),))
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise ConfigError(source, (_from_marked(error),)) from None
    except yaml.YAMLError:
        raise ConfigError(source, (Mistake("", "the file has characters that YAML does not allow"),)) from None
    if root is None:
        raise ConfigError(source, (Mistake("", "the file is empty", "start from `infra/clusters/local.yaml`"),))
    lines: dict[str, int] = {}
    mistakes: list[Mistake] = []
    return Document(_plain(root, "", lines, mistakes), lines, tuple(mistakes))


def _from_marked(error: yaml.MarkedYAMLError) -> Mistake:
    mark = error.problem_mark or error.context_mark
    column = f" (column {mark.column + 1})" if mark is not None else ""
    remedy = "write the value out at each place" if "aliases" in (error.problem or "") else None
    return Mistake(
        "", f"this is not YAML: {error.problem}{column}", remedy, mark.line + 1 if mark is not None else None
    )


def _plain(node: yaml.Node, path: str, lines: dict[str, int], mistakes: list[Mistake]) -> Plain:
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    if isinstance(node, yaml.SequenceNode) and node.tag == _PREFIX + "seq":
        return [_plain(item, join(path, index), lines, mistakes) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode) and node.tag == _PREFIX + "map":
        return _mapping(node, path, lines, mistakes)
    if isinstance(node, yaml.ScalarNode):
        kind = node.tag.removeprefix(_PREFIX)
        if kind in ("null", "bool", "int", "float", "str"):
            return _scalar(kind, node.value, Mistake(path, "this number is too long", None, line), mistakes)
    mistakes.append(Mistake(path, "YAML tags are not taken", "write a plain value", line))
    return None


def _mapping(node: yaml.MappingNode, path: str, lines: dict[str, int], mistakes: list[Mistake]) -> Plain:
    made: dict[str, Plain] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _PREFIX + "str":
            mistakes.append(Mistake(path, "a key here is not text", "put the key in quotes", line))
            continue
        inner = join(path, key_node.value)
        if key_node.value in made:
            mistakes.append(Mistake(inner, "this key stands here twice", "leave one out", line))
            continue
        lines[inner] = line
        made[key_node.value] = _plain(value_node, inner, lines, mistakes)
    return made


def _scalar(kind: str, text: str, too_long: Mistake, mistakes: list[Mistake]) -> Plain:
    if kind == "str":
        return text
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if len(text) > MAX_NUMBER_CHARS:
        mistakes.append(too_long)
        return None
    return int(text) if kind == "int" else float(text)


def join(path: str, step: str | int) -> str:
    """The path of `step` below `path`."""
    return f"{path}.{step}" if path else str(step)
