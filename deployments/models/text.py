"""Text to fit and to measure the embedded models with, made from what every installation has.

Prose is the language reference that ships with Python and the descriptions of installed packages; code is the
standard library; data is generated JSON, CSV, logs and settings. Documents are put in an order that depends on
nothing but their content, and every fourth one is held out: what a model is fitted on never measures it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
import sysconfig
from collections.abc import Sequence
from email.parser import Parser
from pathlib import Path
from typing import Literal, Protocol

import torch

Kind = Literal["prose", "code", "data"]
KINDS: tuple[Kind, ...] = ("prose", "code", "data")
Split = Literal["train", "held_out"]

WINDOW = 512
"""Tokens in one sequence."""
_DOCUMENT_CHARACTERS = 3000
_DATA_DOCUMENTS = 160
_HELD_OUT_EVERY = 4
_END_OF_DOCUMENT = 0  # SmolLM2's <|endoftext|>


class Tokenizer(Protocol):
    """What is needed of a tokenizer."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        """Return the token ids of `text` under `input_ids`."""


def documents(kind: Kind, split: Split) -> list[str]:
    """The documents of one kind in one split, each at most 3,000 characters, in a fixed order."""
    texts = {"prose": _prose, "code": _code, "data": _data}[kind]()
    ordered = sorted((text[:_DOCUMENT_CHARACTERS] for text in texts), key=_content_key)
    if kind != "data":
        ordered = _distinct(ordered)
    held_out = split == "held_out"
    return [text for place, text in enumerate(ordered) if (place % _HELD_OUT_EVERY == 0) == held_out]


def sequences(texts: Sequence[str], tokenizer: Tokenizer, tokens: int) -> torch.Tensor:
    """Pack documents into sequences: int64 of shape (n, WINDOW), n * WINDOW at most `tokens`.

    Raises ValueError when the documents do not fill one sequence.
    """
    ids: list[int] = []
    for text in texts:
        if len(ids) >= tokens:
            break
        ids += [*tokenizer(text)["input_ids"], _END_OF_DOCUMENT]
    rows = min(len(ids), tokens) // WINDOW
    if rows == 0:
        raise ValueError(f"{len(ids)} tokens of text do not fill a sequence of {WINDOW}")
    return torch.tensor(ids[: rows * WINDOW], dtype=torch.int64).view(rows, WINDOW)


def _distinct(texts: Sequence[str]) -> list[str]:
    """Leave out what mostly repeats an earlier text: a topic under a second name, a family of packages."""
    seen: set[str] = set()
    kept = []
    for text in texts:
        lines = {line for line in map(str.strip, text.splitlines()) if line}
        if 2 * len(lines & seen) < len(lines):
            kept.append(text)
        seen |= lines
    return kept


def _content_key(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _prose() -> list[str]:
    import pydoc_data.topics

    texts = [topic for topic in pydoc_data.topics.topics.values() if len(topic) > 500]
    purelib = Path(sysconfig.get_paths()["purelib"])
    for path in purelib.glob("*.dist-info/METADATA"):
        message = Parser().parsestr(path.read_text(encoding="utf-8", errors="replace"))
        body = message.get_payload()
        description = body if isinstance(body, str) and body.strip() else str(message.get("Description", ""))
        # The first lines of a description are badges and links; prose begins below them.
        prose = description[len(description) // 10 :].strip()
        if len(prose) > 1000:
            texts.append(prose)
    return texts


def _code() -> list[str]:
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    paths = [*stdlib.glob("*.py"), *stdlib.glob("[a-z]*/*.py")]
    skipped = {"site-packages", "test", "idlelib", "lib2to3", "pydoc_data", "encodings"}
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in paths if path.parent.name not in skipped]
    # A file's middle holds code; its beginning is often one long docstring.
    return [text[len(text) // 4 :] for text in texts if len(text) > 2000]


_FIRST = ("Ann", "Bob", "Chen", "Dara", "Eve", "Farid", "Grace", "Hugo", "Ines", "Jun", "Kofi", "Lena", "Mara", "Noor")
_LAST = ("Okafor", "Smith", "Garcia", "Ivanov", "Tanaka", "Weber", "Rossi", "Novak", "Haddad", "Larsen", "Costa")
_CITY = ("Lisbon", "Nairobi", "Osaka", "Quito", "Oslo", "Perth", "Lyon", "Austin", "Cairo", "Hanoi", "Riga", "Turin")
_ITEM = ("lamp", "desk", "cable", "keyboard", "notebook", "chair", "monitor", "bottle", "backpack", "router", "sensor")
_STATE = ("active", "pending", "shipped", "cancelled", "returned", "paid", "overdue", "draft")
_LEVEL = ("INFO", "INFO", "INFO", "WARN", "ERROR", "DEBUG")


def _data() -> list[str]:
    makers = (_json_records, _csv_table, _log_lines, _settings, _json_nested)
    return [makers[number % len(makers)](random.Random(number)) for number in range(_DATA_DOCUMENTS)]


def _person(rng: random.Random) -> dict[str, object]:
    first, last = rng.choice(_FIRST), rng.choice(_LAST)
    return {
        "id": rng.randint(1, 99999),
        "name": f"{first} {last}",
        "email": f"{first}.{last}@example.com".lower(),
        "city": rng.choice(_CITY),
        "active": rng.random() < 0.7,
    }


def _order(rng: random.Random) -> dict[str, object]:
    quantity, price = rng.randint(1, 20), round(rng.uniform(1, 300), 2)
    return {
        "order": f"{rng.choice('ABCD')}-{rng.randint(1000, 9999)}",
        "item": rng.choice(_ITEM),
        "quantity": quantity,
        "price": price,
        "total": round(quantity * price, 2),
        "status": rng.choice(_STATE),
        "date": _date(rng),
    }


def _date(rng: random.Random) -> str:
    return f"20{rng.randint(15, 25)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def _json_records(rng: random.Random) -> str:
    make = rng.choice((_person, _order))
    return json.dumps([make(rng) for _ in range(40)], indent=rng.choice((None, 2)))


def _json_nested(rng: random.Random) -> str:
    people = [{**_person(rng), "orders": [_order(rng) for _ in range(rng.randint(1, 3))]} for _ in range(10)]
    return json.dumps({"page": rng.randint(1, 9), "count": len(people), "results": people}, indent=2)


def _csv_table(rng: random.Random) -> str:
    make = rng.choice((_person, _order))
    rows = [make(rng) for _ in range(60)]
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), delimiter=rng.choice(",;\t"), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _log_lines(rng: random.Random) -> str:
    day, clock, lines = _date(rng), rng.randint(0, 80000), []
    for _ in range(50):
        clock += rng.randint(0, 30)
        stamp = f"{day}T{clock // 3600:02d}:{clock // 60 % 60:02d}:{clock % 60:02d}Z"
        path = f"/api/v{rng.randint(1, 2)}/{rng.choice(('users', 'orders', 'items'))}/{rng.randint(1, 999)}"
        status = rng.choice((200, 200, 200, 201, 304, 404, 500))
        took = rng.randint(1, 900)
        lines.append(f"{stamp} {rng.choice(_LEVEL)} method=GET path={path} status={status} duration_ms={took}")
    return "\n".join(lines)


def _settings(rng: random.Random) -> str:
    lines = []
    for _ in range(12):
        lines.append(f"{rng.choice(_ITEM)}_{rng.randint(1, 99)}:")
        lines.append(f"  enabled: {rng.choice(('true', 'false'))}")
        lines.append(f"  owner: {rng.choice(_FIRST).lower()}")
        lines.append(f"  region: {rng.choice(_CITY).lower()}")
        lines.append(f"  limits: {{cpu: {rng.randint(1, 16)}, memory_mb: {rng.choice((256, 512, 1024, 2048))}}}")
        lines.append(f"  tags: [{', '.join(rng.sample(_STATE, 3))}]")
    return "\n".join(lines)
