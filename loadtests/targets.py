"""Where a load goes: the parsed address of an OpenAI-compatible server, and the rule on which ones may be loaded."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from cluster.config.host import is_loopback


class TargetError(ValueError):
    """The address cannot or may not be loaded. The message says what to do instead."""


@dataclass(frozen=True, slots=True)
class Target:
    """An OpenAI-compatible server. `prefix` ends in `/v1` and is what `/chat/completions` is appended to."""

    host: str
    port: int
    tls: bool
    prefix: str
    key: str | None = None

    @property
    def authority(self) -> str:
        """Host and port as they stand in a `Host` header."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"{name}:{self.port}"

    @property
    def root(self) -> str:
        """URL of the server without any path: what `/metrics` is appended to."""
        return f"{'https' if self.tls else 'http'}://{self.authority}"


def parse_target(url: str, key: str | None = None, *, allow_remote: bool = False) -> Target:
    """The target behind `url`; `http://host:port`, with or without `/v1`.

    A load test sends as much as the target takes, so only loopback is accepted unless `allow_remote` is set.
    Raises `TargetError`.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise TargetError(f"{url!r} is not a URL; write http://127.0.0.1:8000") from None
    if parts.scheme not in ("http", "https") or not host:
        raise TargetError(f"{url!r} is not an http or https URL; write http://127.0.0.1:8000")
    if parts.username is not None or parts.query or parts.fragment:
        raise TargetError("the URL may hold scheme, host, port and path only; pass a key with --key")
    if not is_loopback(host) and not allow_remote:
        raise TargetError(
            f"{host} is another machine. Load only what is yours: `python -m loadtests.run --allow-remote` takes it."
        )
    path = parts.path.rstrip("/")
    tls = parts.scheme == "https"
    return Target(
        host=host,
        port=port or (443 if tls else 80),
        tls=tls,
        prefix=path if path.endswith("/v1") else f"{path}/v1",
        key=key,
    )
