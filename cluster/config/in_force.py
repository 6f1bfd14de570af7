"""A config with every default filled in, written so that it is a config again."""

from __future__ import annotations

from typing import Any

from cluster.config.check_models import SETTINGS_OF_ENGINE
from cluster.config.checks import SETTINGS_OF_OWN_RAY
from cluster.config.cluster import ClusterConfig


def in_force(config: ClusterConfig) -> dict[str, Any]:
    """The config as JSON values, without settings that mean nothing in it: these would be refused.

    A config names environment variables, never keys, so all of it may be shown.
    """
    document = config.model_dump(mode="json")
    for name, model in config.models.items():
        settings = SETTINGS_OF_ENGINE.get(model.engine.type)
        if settings is not None:
            engine = document["models"][name]["engine"]
            document["models"][name]["engine"] = {key: engine[key] for key in engine if key in settings}
    if config.ray.address is not None:
        for field in SETTINGS_OF_OWN_RAY:
            del document["ray"][field]
    return document
