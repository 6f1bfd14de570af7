"""In which text format metrics are shown: Prometheus's own, or OpenMetrics, which has room for exemplars.

Sources: https://prometheus.io/docs/instrumenting/content_negotiation/ and RFC 9110, section 12.5.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics import exposition as openmetrics

MAX_ACCEPT_CHARS: Final = 2048
"""Of a request's `Accept`; a longer one is not read, and gets the plain format."""

_OPENMETRICS: Final = "application/openmetrics-text"
_VERSIONS: Final = ("", "1.0.0", "0.0.1")
_PLAIN: Final = ("text/plain", "text/*", "*/*")


class Exposition(Enum):
    """A text format of metrics."""

    PLAIN = CONTENT_TYPE_PLAIN_0_0_4
    OPENMETRICS = openmetrics.CONTENT_TYPE_LATEST

    @property
    def content_type(self) -> str:
        """For the answer's header."""
        return self.value

    def render(self, registry: CollectorRegistry) -> bytes:
        """Everything in the registry."""
        if self is Exposition.OPENMETRICS:
            return bytes(openmetrics.generate_latest(registry))
        return generate_latest(registry)


def accepted(headers: Iterable[str]) -> Exposition:
    """The format that a request's `Accept` headers prefer: OpenMetrics if they name it, and none of plain text before it."""
    accept = ",".join(headers)
    if len(accept) > MAX_ACCEPT_CHARS:
        return Exposition.PLAIN
    wished: dict[Exposition, float] = {}
    for form, weight in _wishes(accept):
        wished[form] = max(weight, wished.get(form, 0.0))
    best = wished.get(Exposition.OPENMETRICS, 0.0)
    return Exposition.OPENMETRICS if best > 0 and best >= wished.get(Exposition.PLAIN, 0.0) else Exposition.PLAIN


def _wishes(accept: str) -> Iterator[tuple[Exposition, float]]:
    for wish in accept.lower().split(","):
        media, *more = (part.strip() for part in wish.split(";"))
        parameters = dict(part.split("=", 1) for part in more if "=" in part)
        weight = _weight(parameters.get("q", "1"))
        if media == _OPENMETRICS and parameters.get("version", "") in _VERSIONS:
            yield Exposition.OPENMETRICS, weight
        elif media in _PLAIN:
            yield Exposition.PLAIN, weight


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        return 0.0
    return weight if 0.0 <= weight <= 1.0 else 0.0
