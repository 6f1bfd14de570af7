"""What Pointsman adds to vLLM's worker: vLLM takes one extension class, so the parts meet here."""

from __future__ import annotations

from deployments.engines.vllm_expert_worker import ExpertWorker
from deployments.engines.vllm_kv_worker import KvPrecisionWorker


class PointsmanWorker(KvPrecisionWorker, ExpertWorker):
    """All methods that are called in a worker."""
