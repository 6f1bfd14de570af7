"""Why Serve says that an application is as it is, in a few lines."""

from __future__ import annotations

from typing import Final

from ray.serve.schema import ApplicationStatusOverview

from deployments.engines.protocol import EngineStartError

_STARTS: Final = f"{EngineStartError.__name__}: "


def cause(application: ApplicationStatusOverview) -> str:
    """What Serve says of an application: its deployment's message has the cause, its own only that there was one."""
    told = [deployment.message for deployment in application.deployments.values() if deployment.message]
    return told[0] if told else application.message


def of_pools(application: ApplicationStatusOverview) -> str:
    """Why the expert pools of a model are not all there."""
    return f"its expert pools: {cause(application) or 'starting'}"


def short(message: str, limit: int = 600) -> str:
    """What an engine said when it could not start, from its beginning; of any other message its end, where the cause is."""
    text = message.strip()
    _, marker, said = text.rpartition(_STARTS)
    if marker:
        return said if len(said) <= limit else f"{said[:limit].rstrip()} …"
    return text if len(text) <= limit else "… " + text[-limit:]
