"""Reads how full the KV caches are from a server's `/metrics`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from cluster.telemetry.metric_table import KV_USAGE
from loadtests.client import Connection
from loadtests.http1 import encode_request
from loadtests.targets import Target

KvProbe = Callable[[], Awaitable[float]]
"""How full the KV cache is, 0 to 1."""

BARE_GAUGE: Final = "vllm:kv_cache_usage_perc"
"""The gauge of a bare vLLM server."""


class ProbeError(RuntimeError):
    """The metrics cannot be read, or lack the gauge."""


@asynccontextmanager
async def metrics_probe(target: Target, model: str, gauge: str = KV_USAGE.name) -> AsyncIterator[KvProbe]:
    """A probe of the fullest replica of a model, over a connection of its own. It raises `ProbeError`."""
    connection = Connection(target)
    headers = () if target.key is None else (("authorization", f"Bearer {target.key}"),)
    request = encode_request("GET", "/metrics", target.authority, headers)

    async def probe() -> float:
        exchange = await connection.send(request, 5.0)
        if exchange.failure is not None or exchange.status != 200:
            raise ProbeError(f"{target.root}/metrics answers {exchange.failure or exchange.status}")
        text = b"".join(data for _, data in exchange.arrivals).decode()
        return usage_in(text, model, gauge)

    try:
        yield probe
    finally:
        connection.close()
        # The transport closes in the next turn of the loop.
        await asyncio.sleep(0)


def usage_in(text: str, model: str, gauge: str) -> float:
    """The highest value of the gauge for a model, in Prometheus text. Raises `ProbeError` if there is none."""
    values = [
        sample.value
        for family in text_string_to_metric_families(text)
        if family.name == gauge
        for sample in family.samples
        if model in (sample.labels.get("model"), sample.labels.get("model_name"))
    ]
    if not values:
        raise ProbeError(f"the metrics have no {gauge} of model {model!r}; name another with --gauge")
    return float(max(values))


async def wait_until_at_most(probe: KvProbe, level: float, timeout_s: float, every_s: float = 0.02) -> float | None:
    """Seconds until the probe says `level` or less; None if it never did in `timeout_s`."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while await probe() > level:
        if loop.time() - began > timeout_s:
            return None
        await asyncio.sleep(every_s)
    return loop.time() - began
