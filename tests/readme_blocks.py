"""Finds what README.md tells a reader to run, so that a test can run it.

A block whose language is `console`, `bash` or `sh` is run; in a `console` block only what follows a `$ ` prompt. A block
that cannot be run here is preceded by `<!-- not run: the reason -->`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>```+|~~~+)\s*(?P<language>[\w-]*)[^`]*$")
_NOT_RUN = re.compile(r"^\s*<!--\s*not run:(?P<reason>.*?)-->\s*$")
_LANGUAGES = ("console", "bash", "sh")


@dataclass(frozen=True)
class Block:
    """A block of commands. `line` is that of its fence, counted from 1; `reason` is set if it is not to be run."""

    line: int
    commands: tuple[str, ...]
    reason: str | None = None

    @property
    def make_targets(self) -> tuple[str, ...]:
        """The targets of all `make` commands in the block."""
        return tuple(target for command in self.commands for target in make_targets(command))


def make_targets(command: str) -> tuple[str, ...]:
    """The targets that a command gives to `make`; empty if it is another command."""
    words = command.split("#", maxsplit=1)[0].split()
    if words[:1] != ["make"]:
        return ()
    return tuple(word for word in words[1:] if not word.startswith("-") and "=" not in word)


def lifecycle_command(command: str) -> str | None:
    """`up` or `down` if the command starts or stops a cluster (the fixture does that for all blocks), else None."""
    match = re.match(r"(?:\S*/)?pointsman (up|down)\b", command)
    return match.group(1) if match else None


def find_blocks(text: str) -> list[Block]:
    """All blocks of commands in a Markdown text. Raises `ValueError` on a fence left open or a mark without a reason."""
    blocks: list[Block] = []
    lines = text.splitlines()
    index, mark = 0, None
    while index < len(lines):
        line = lines[index]
        marked = _NOT_RUN.match(line)
        if marked:
            mark = marked.group("reason").strip()
            if not mark:
                raise ValueError(f"line {index + 1}: `not run` needs a reason")
        opened = _FENCE.match(line)
        if opened:
            end = _end_of(lines, index, opened.group("fence"))
            if opened.group("language") in _LANGUAGES:
                indent = len(opened.group("indent"))
                body = [inner[indent:] for inner in lines[index + 1 : end]]
                blocks.append(Block(index + 1, _commands(body, opened.group("language")), mark))
            index = end
        if line.strip() and not marked:
            mark = None
        index += 1
    return blocks


def _end_of(lines: list[str], start: int, fence: str) -> int:
    for index in range(start + 1, len(lines)):
        if lines[index].strip().startswith(fence) and not lines[index].strip().strip(fence[0]):
            return index
    raise ValueError(f"line {start + 1}: this block has no end")


def _commands(body: list[str], language: str) -> tuple[str, ...]:
    """Join continued lines; of a console session take what was typed."""
    commands: list[str] = []
    goes_on = False
    for line in body:
        typed = line
        if language == "console" and not goes_on:
            if not line.startswith("$ "):
                continue
            typed = line[2:]
        if language == "console" and goes_on:
            typed = line.removeprefix("> ")
        if goes_on:
            commands[-1] += "\n" + typed
        elif typed.strip() and not typed.lstrip().startswith("#"):
            commands.append(typed)
        else:
            continue
        goes_on = typed.endswith("\\")
    return tuple(commands)


def read_blocks(path: Path) -> list[Block]:
    """The blocks of a file; none if there is no such file."""
    return find_blocks(path.read_text(encoding="utf-8")) if path.is_file() else []
