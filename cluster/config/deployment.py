"""Where `pointsman render` puts a cluster: images, volumes, and the names of what holds its secrets."""

from __future__ import annotations

from typing import Final

from pydantic import Field, field_validator

from cluster.config.base import Section

_NAME: Final = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
PROBE_PERIOD_S: Final = 5
"""Seconds between two looks of Kubernetes at a pod."""
PROBE_FAILURES: Final = 3
"""Looks in a row that have to fail before a pod is sent nothing any more."""
_MAX_PORT: Final = 65_535
_IMAGE: Final = (
    r"^[a-z0-9][a-z0-9.-]*(:[0-9]{1,5})?(/[a-z0-9][a-z0-9._-]*)*"
    r"(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}|@sha256:[0-9a-f]{64})$"
)


class DeploymentConfig(Section):
    """Where `pointsman render` puts the cluster on Kubernetes. Secrets are named here, never written. See docs/deploy.md."""

    image: str = Field(max_length=512, pattern=_IMAGE)
    """Image that everything without a GPU runs, with its tag or digest."""
    gpu_image: str | None = Field(None, max_length=512, pattern=_IMAGE)
    """Image of the replicas that compute on GPUs, with its tag or digest; null: `image`."""
    namespace: str = Field("pointsman", pattern=_NAME)
    """Namespace of all objects."""
    redis_address: str = Field(max_length=300, pattern=r"^(rediss?://)?[A-Za-z0-9][A-Za-z0-9.-]*:[0-9]{1,5}$")
    """Address, `HOST:PORT`, of the Redis that keeps what Ray's head knows, so that the head may be lost."""
    redis_secret: str = Field("pointsman-redis", pattern=_NAME)
    """Name of the secret with Redis's password, under `password`."""
    ray_token_secret: str = Field("pointsman-ray", pattern=_NAME)
    """Name of the secret with the token that Ray's processes ask of each other, under `auth_token`."""
    keys_secret: str = Field("pointsman-keys", pattern=_NAME)
    """Name of the secret with the file of hashed API keys, under `keys.jsonl`."""
    environment_secret: str = Field("pointsman-environment", pattern=_NAME)
    """Name of the secret with every variable that the config names (`api_key_env`, `password_env`), and `HF_TOKEN` if need be."""
    pools_secret: str = Field("pointsman-pools", pattern=_NAME)
    """Name of the secret that expert pools and their trunks have to know, under `secret`."""
    otlp_endpoint: str | None = Field(None, max_length=512, pattern=r"^https?://[A-Za-z0-9][A-Za-z0-9.-]*:[0-9]{1,5}$")
    """URL, with the port, of the collector that takes traces over gRPC; null: none."""
    gateway_namespace: str = Field("gateway", pattern=_NAME)
    """Namespace of the gateway that ends TLS. Nobody else reaches the ingress, but what scrapes its metrics."""
    gateway_app: str = Field("gateway", pattern=_NAME)
    """Label `app.kubernetes.io/name` of the gateway's pods."""
    metrics_namespace: str = Field("monitoring", pattern=_NAME)
    """Namespace of what scrapes the metrics."""
    operator_namespace: str = Field("kuberay-system", pattern=_NAME)
    """Namespace of the KubeRay operator; it alone reaches Ray's dashboard."""
    cache_bytes: int = Field(214_748_364_800, ge=1_073_741_824, le=2**50)
    """Bytes of the volume that all models are kept on."""
    storage_class: str | None = Field(None, max_length=253, pattern=r"^[a-z0-9][a-z0-9.-]*$")
    """Storage class of that volume, one that many nodes can read; null: the default one."""

    @field_validator("redis_address", "otlp_endpoint")
    @classmethod
    def _port_exists(cls, value: str | None) -> str | None:
        if value is not None and not 1 <= int(value.rpartition(":")[2]) <= _MAX_PORT:
            raise ValueError(f"the port has to be from 1 to {_MAX_PORT}")
        return value
