"""Objects as YAML that people and linters read."""

from __future__ import annotations

import re
from typing import Any, Final

import yaml

_ELSEWHERE: Final = re.compile(r"[-+.0-9]|[yYnN]$")
"""What other readers may take for a number or a truth value, which PyYAML, who knows YAML 1.1, does not: `1e3`, `0o17`, `y`."""


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, indents lists, and repeats what stands twice."""

    def ignore_aliases(self, data: object) -> bool:
        """No anchors: not everything that reads YAML knows them."""
        del data
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Lists stand further in than their key."""
        del indentless
        super().increase_indent(flow, indentless=False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else '"' if _ELSEWHERE.match(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def dump(value: object) -> str:
    """YAML, keys in their order."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**16)
    return text


def dump_all(documents: list[dict[str, Any]]) -> str:
    """Several documents."""
    return "".join(f"---\n{dump(document)}" for document in documents)
