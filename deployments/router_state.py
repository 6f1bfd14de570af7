"""What the routers of one ingress process share with it, and what a router remembers."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from deployments.channel.receiver import ChannelReceiver

MAX_REASONS: Final = 4096
"""Choices whose reason is kept until the request asks for it."""


class RouterState:
    """What the routers of one ingress process share with it."""

    def __init__(self) -> None:
        self.channel: ChannelReceiver | None = None
        self._replicas: dict[str, frozenset[str]] = {}
        self._reasons: OrderedDict[str, str] = OrderedDict()

    def note(self, application: str, replica_ids: frozenset[str]) -> None:
        """Serve's current list of an application's replicas."""
        self._replicas[application] = replica_ids

    def replicas(self, application: str) -> frozenset[str] | None:
        """The last list noted, or None while Serve has not told of any."""
        return self._replicas.get(application)

    def note_reason(self, stream: str, reason: str) -> None:
        """Why a stream's request goes where it goes."""
        self._reasons[stream] = reason
        if len(self._reasons) > MAX_REASONS:
            self._reasons.popitem(last=False)

    def take_reason(self, stream: str) -> str | None:
        """The reason noted, once."""
        return self._reasons.pop(stream, None)


STATE = RouterState()
"""Serve builds routers itself, inside the process that holds the handle, and hands them nothing but constants. This is
the one process-wide object: through it an ingress and its routers tell each other what they know."""


class Turns:
    """Who was chosen when: among equals, whoever was chosen longest ago comes first.

    A load is known only once a replica has told of it. Requests that come together would all see the same one, and all go
    to the same replica, if equals did not take turns.
    """

    def __init__(self) -> None:
        self.chosen: dict[str, int] = {}
        self._choices = 0

    def note(self, replica: str) -> None:
        """It was chosen now."""
        self._choices += 1
        self.chosen[replica] = self._choices

    def keep(self, replicas: frozenset[str]) -> None:
        """Forget all replicas but these."""
        self.chosen = {replica: turn for replica, turn in self.chosen.items() if replica in replicas}
