"""All dashboards."""

from __future__ import annotations

from typing import Final

from deployments.dashboards.experts import EXPERTS
from deployments.dashboards.memory import MEMORY
from deployments.dashboards.model import Dashboard
from deployments.dashboards.overview import OVERVIEW
from deployments.dashboards.replicas import REPLICAS
from deployments.dashboards.requests import REQUESTS
from deployments.dashboards.routing import ROUTING

DASHBOARDS: Final[tuple[Dashboard, ...]] = (OVERVIEW, ROUTING, MEMORY, EXPERTS, REPLICAS, REQUESTS)


def file_name(dashboard: Dashboard) -> str:
    """What the file with its JSON is called."""
    return f"{dashboard.uid}.json"
