"""A real dense engine in the test's own process; one for each file that asks for it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from deployments.engines.vllm_engine import VllmEngine
from deployments.processes import process_state
from tests.integration.dense_engine import Call, running_dense


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[VllmEngine]:
    async with running_dense() as started:
        yield started
        pids = started.pids()
    assert all(process_state(pid) in {None, "Z"} for pid in pids)


@pytest.fixture
def call(engine: VllmEngine) -> Call:
    return Call(engine)
