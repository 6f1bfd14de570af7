"""Starts or joins the Ray cluster."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import ray
from ray import serve
from ray.serve.config import ProxyLocation

from cluster.config.operations import RayConfig
from deployments.head.state import TEMPORARY_PREFIX

NAMESPACE = "pointsman"

TELLING_S = 2.0
"""Seconds until Serve has told an application to stop."""
DRAIN_POLL_S = 0.2


class RayCluster:
    """A Ray cluster of our own, or one that runs already."""

    def __init__(self, config: RayConfig) -> None:
        self._config = config
        self._temporary: Path | None = None

    @property
    def owned(self) -> bool:
        """Whether this process started it and has to stop it."""
        return self._config.address is None

    def prepare(self) -> str:
        """Make the directory of an own cluster; returns it, or "" for a cluster that runs already."""
        if self.owned and self._temporary is None:
            # Short, because Unix socket paths below it are limited to 107 bytes.
            self._temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX))
        return "" if self._temporary is None else str(self._temporary)

    def start(self) -> str:
        """Start or join; returns the address of the Ray cluster."""
        if not self.owned:
            ray.init(address=self._config.address, namespace=NAMESPACE, log_to_driver=False)
            return self._address()
        temporary = self.prepare()
        ray.init(
            num_cpus=self._config.num_cpus,
            object_store_memory=self._config.object_store_bytes,
            namespace=NAMESPACE,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=temporary,
        )
        return self._address()

    @staticmethod
    def _address() -> str:
        return str(ray.get_runtime_context().gcs_address)

    def start_serve(self) -> None:
        """Start Serve's controller. No Serve proxies: the ingress deployment listens itself."""
        serve.start(
            proxy_location=ProxyLocation.Disabled,
            logging_config={"enable_access_log": False, "log_level": "WARNING"},
        )

    def stop(self, drain_s: float, applications: Sequence[str], lame_duck_s: float = 0.0) -> None:
        """Let requests that are under way end for at most `drain_s` seconds, and stop the `applications`.

        The first of them is told `lame_duck_s` before the others: it still takes requests meanwhile, which they are to answer.

        Serve and Ray go with them if they are ours; on a cluster that ran already, others have applications of their own.
        """
        if ray.is_initialized():
            try:
                self._drain(drain_s, applications, lame_duck_s)
                if self.owned:
                    serve.shutdown()
            finally:
                ray.shutdown()

    @staticmethod
    def _drain(limit_s: float, applications: Sequence[str], lame_duck_s: float) -> None:
        """Delete the applications and wait until they are gone: `serve.shutdown` waits 30 s, however long they may take."""
        present = serve.status().applications
        for number, name in enumerate(applications):
            if name in present:
                serve.delete(name, _blocking=False)
                if number == 0 and lame_duck_s > 0:
                    time.sleep(lame_duck_s + TELLING_S)
        deadline = time.monotonic() + limit_s
        while not serve.status().applications.keys().isdisjoint(applications) and time.monotonic() < deadline:
            time.sleep(DRAIN_POLL_S)

    def remove_temporary(self) -> None:
        """Remove the directory of an own cluster. Once nothing runs in it any more."""
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None
