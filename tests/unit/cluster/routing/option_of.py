"""Options for tests of filters and scorers."""

from __future__ import annotations

from cluster.config.model import ModelConfig
from cluster.routing.option import Option
from cluster.routing.signals import RequestSignals
from cluster.routing.snapshot import ModelState

REQUEST = RequestSignals(embedding=False, prompt_tokens=100, max_tokens=50)
STALE_AFTER_S = 3.0


def option_of(
    state: ModelState | None = None, place: int = 0, target_s: float | None = None, **model: object
) -> Option:
    """A dense model with the given config, in `state`."""
    settings = {"kind": "dense", "roles": ["strong"], "source": "embedded:dense"} | model
    config = ModelConfig.model_validate(settings)
    option = Option("alpha", config, place, ModelState(1), target_s, STALE_AFTER_S, "serves strong")
    return option.at(state or ModelState(1))
