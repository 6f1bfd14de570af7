"""Asks the deployment that decides on a model's expert pools, through Ray Serve."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from ray.serve.handle import DeploymentHandle

from deployments.names import POOLS_DEPLOYMENT, pools_application_name


def asking(application: str) -> Callable[[], Awaitable[bytes]]:
    """What asks how the pools stand that belong to a model's application (name): a `PoolsView` as JSON.

    It raises what Serve raises. The caller sets the time limit: where there is no such deployment, no answer ever comes.
    """
    # Not `serve.get_deployment_handle`: it insists on a deployment that exists, and holds up the event loop.
    handle: DeploymentHandle[object] = DeploymentHandle(POOLS_DEPLOYMENT, pools_application_name(application))

    async def ask() -> bytes:
        response = handle.view.remote()
        try:
            told = await response
        except asyncio.CancelledError:
            # If the call has failed meanwhile, this raises what it failed with.
            with suppress(Exception):
                response.cancel()
            raise
        if not isinstance(told, bytes):
            raise TypeError(f"the pools told a {type(told).__name__}")
        return told

    return ask
