"""Which hosts are this machine alone, and which upstream URLs are safe to send a key to."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Whether `host` (address or name) can only be reached from this machine. Names other than localhost count as not."""
    bare = host.strip("[]").lower()
    if bare == "localhost":
        return True
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False


def url_mistake(url: str) -> tuple[str, str] | None:
    """What is wrong with an upstream's base URL and how to mend it, or None. Never repeats the URL."""
    form = "write it as https://HOST/v1"
    try:
        parts = urlsplit(url)
        host = parts.hostname if parts.port is None or parts.port else None
    except ValueError:
        return "is not a URL", form
    faults = (
        (any(ord(letter) <= 32 or ord(letter) == 127 for letter in url), "has spaces or control characters", form),
        (parts.scheme not in ("http", "https") or not host, "is not an http or https URL", form),
        (
            parts.username is not None or parts.password is not None,
            "has a user name or password in it",
            "put the key into an environment variable and name that in api_key_env",
        ),
        (bool(parts.query or parts.fragment), "has a query or a fragment", f"end it after the path: {form}"),
        (
            parts.scheme == "http" and not is_loopback(host or ""),
            "would send prompts and keys over plain http",
            "use https; http is for loopback alone",
        ),
    )
    return next(((f"this {message}", remedy) for faulty, message, remedy in faults if faulty), None)
