"""A worker whose change of KV precision fails when a test says so. The engine core imports it by name."""

from __future__ import annotations

import os
from pathlib import Path

from deployments.engines.vllm_worker import PointsmanWorker

FAILING = "POINTSMAN_TEST_FAILING_PRECISIONS"
"""Environment variable: a file with the precisions that fail now, separated by spaces."""


class FailingWorker(PointsmanWorker):
    def pointsman_set_kv_dtype(self, dtype: str) -> None:
        # At the worst moment: the old cache is gone, the new one is not made.
        super().pointsman_set_kv_dtype(dtype)
        if dtype in Path(os.environ[FAILING]).read_text(encoding="utf-8").split():
            raise MemoryError(f"no room for {dtype}")
