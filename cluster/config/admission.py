"""When requests wait, and when they are refused."""

from __future__ import annotations

from pydantic import Field

from cluster.config.base import Section


class AdmissionConfig(Section):
    """Admission in front of each model; how many may wait is `replicas.max_queued_requests` of the model."""

    kv_overcommit: float = Field(2.0, ge=0.1, le=100)
    """KV tokens that requests may reserve (prompt, and tokens asked for), as a number of times those that there are: most ask for
    more than they use."""
    tenant_share: float = Field(0.5, gt=0, le=1)
    """Share of a model's queue, 0 to 1, that the requests of one tenant may fill."""
    aging_s: float = Field(10.0, gt=0, le=3600)
    """Seconds of waiting after which a request counts as one latency class more urgent."""
