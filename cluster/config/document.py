"""The reference of the config as Markdown, made from the model itself so that it cannot go stale."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from cluster.config.load import config_schema

_HEADER: Final = """# Configuration

A cluster is described by one YAML file. `infra/clusters/local.yaml` is the embedded default, `infra/clusters/gpu.yaml` a
production portfolio. `pointsman config check FILE` names the path of every mistake in a file, `pointsman config schema`
prints the JSON schema that this page is made from. Keys that are not known are refused, as are YAML aliases, tags and
keys that stand twice; `on`, `off`, `yes` and `no` are words, not booleans.
"""

_FOOTER: Final = """
## What is checked across fields

- A role that a rule, a contract or a fallback names has a model. A model is not named like a role, nor `auto`.
- A model's source, upstream and engine fit its kind. Settings that an engine does not have are refused.
- A contract's prompt and completion together fit `max_model_len` of every model with the role (with `kv_window_tokens`, the
  completion fits the window). Fallbacks do not lead in a circle, and chat models and encoders do not stand in for
  each other.
- A replica on vLLM reserves no GPU or as many whole ones as `tensor_parallel_size`: it takes most of their memory.
- The thresholds at which a replica leaves a level of `precision` lie below those at which it enters one. A twin is
  another model that generates text, and has no twin itself.
- The share below which an expert cools down lies below the one above which it is hot.
- An upstream's URL is https (http on loopback alone) and carries no user name, password, query or fragment.
- Listening beyond loopback needs keys.
"""

_LIMITS: Final = (("minimum", "from {}"), ("exclusiveMinimum", "above {}"), ("maximum", "to {}"))


def render_document() -> str:
    """The whole page, Markdown."""
    schema = config_schema()
    definitions: Mapping[str, Any] = schema["$defs"]
    lines = [_HEADER, "## Top level", "", *_table(schema, definitions)]
    seen: set[str] = set()
    for path, name in _sections(schema, definitions, ""):
        if name in seen:
            continue
        seen.add(name)
        section = definitions[name]
        lines += ["", f"## `{path}`", "", _one_line(section.get("description", "")), "", *_table(section, definitions)]
    return "\n".join(lines) + "\n" + _FOOTER


def _sections(section: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
    for field, spec in section["properties"].items():
        name, step = _reference(spec), field
        if name is None and "additionalProperties" in spec:
            name, step = _reference(spec["additionalProperties"]), f"{field}.NAME"
        if name is None and spec.get("patternProperties"):
            name, step = _reference(next(iter(spec["patternProperties"].values()))), f"{field}.NAME"
        if name is None and (items := _items(spec)) is not None:
            name, step = items, f"{field}.N"
        if name is not None and "properties" in definitions[name]:
            inner = f"{path}.{step}" if path else step
            yield inner, name
            yield from _sections(definitions[name], definitions, inner)


def _items(spec: Mapping[str, Any]) -> str | None:
    """What a list of sections holds."""
    for option in (spec, *spec.get("anyOf", ())):
        if option.get("type") == "array" and (name := _reference(option.get("items"))) is not None:
            return name
    return None


def _reference(spec: object) -> str | None:
    if not isinstance(spec, dict):
        return None
    for option in (spec, *spec.get("anyOf", ()), *spec.get("allOf", ())):
        if "$ref" in option:
            return str(option["$ref"]).rpartition("/")[2]
    return None


def _table(section: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[str]:
    yield "| field | values | default | meaning |"
    yield "| --- | --- | --- | --- |"
    needed = section.get("required", ())
    for field, spec in section["properties"].items():
        default = "required" if field in needed else _default(spec, definitions)
        meaning = _one_line(spec.get("description", ""))
        yield f"| `{field}` | {_values(spec, definitions)} | {default} | {meaning} |".replace("  ", " ")


def _default(spec: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    name = _reference(spec)
    default = spec.get("default")
    if default is not None and name is not None and "properties" in definitions[name]:
        return "see there"
    return f"`{json.dumps(default)}`"


def _values(spec: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "anyOf" in spec:
        return " or ".join(_values(option, definitions) for option in spec["anyOf"])
    name = _reference(spec)
    if name is not None:
        referred = definitions[name]
        return "section" if "properties" in referred else _values(referred, definitions)
    if "enum" in spec:
        return ", ".join(f"`{value}`" for value in spec["enum"])
    kind = str(spec.get("type", "any"))
    if kind == "array":
        pair = " and ".join(_values(item, definitions) for item in spec.get("prefixItems", ()))
        return f"pair of {pair}" if pair else f"list of {_values(spec['items'], definitions)}"
    if kind == "object":
        return "sections by name"
    limits = [text.format(spec[key]) for key, text in _LIMITS if key in spec]
    return " ".join([{"null": "null", "string": "text"}.get(kind, kind), *limits])


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
