"""Models that have no replica while nobody asks for them: who is parked, and starting one when it is asked for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from cluster.config.model import ModelConfig
from cluster.routing.snapshot import ModelState
from deployments.ingress.dispatch import ModelClient

_log = logging.getLogger(__name__)

FIRST_GUESS_S: Final = 60.0
"""Seconds that a start is taken to last before one was seen, or the model's own limit if that is shorter."""


class Waking:
    """Of one ingress."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limits: dict[str, float] = {}
        self._clients: Mapping[str, ModelClient] = {}
        self._since: dict[str, float] = {}
        self._took: dict[str, float] = {}

    def follow(self, models: Mapping[str, ModelConfig], clients: Mapping[str, ModelClient]) -> None:
        """The models that there are now."""
        self._limits = {
            name: model.replicas.start_timeout_s for name, model in models.items() if model.replicas.min == 0
        }
        self._clients = clients
        self._since = {name: at for name, at in self._since.items() if name in self._limits}

    def state(self, model: str) -> ModelState | None:
        """Of a model without a replica that is ready; None if it should have one."""
        if model not in self._limits:
            return None
        since = self._since.get(model)
        words = "parked, and started when it is asked for" if since is None else "being started"
        return ModelState(0, words, parked=True, start_s=self._left_s(model))

    def ready(self, model: str) -> None:
        """It has a replica: a start that was under way has ended."""
        since = self._since.pop(model, None)
        if since is not None:
            self._took[model] = self._clock() - since
            _log.info("a parked model was started in %.1f s", self._took[model], extra={"model": model})

    def wake(self, models: Iterable[str]) -> None:
        """Have a replica of each started, if it is parked. Serve starts one for a call that waits."""
        for model in models:
            if model not in self._limits:
                continue
            now = self._clock()
            since = self._since.get(model)
            if since is None or now - since > self._limits[model]:
                # A start that took longer has failed, or found no room: the next caller begins anew.
                self._since[model] = now
            self._clients[model].wake(self._limits[model])

    def _left_s(self, model: str) -> float:
        """Seconds until a replica should be there, as far as can be told: as long as the last start took."""
        limit = self._limits[model]
        expected = min(self._took.get(model, FIRST_GUESS_S), limit)
        since = self._since.get(model)
        return expected if since is None else max(1.0, expected - (self._clock() - since))
