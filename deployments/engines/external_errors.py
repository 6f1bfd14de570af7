"""What went wrong at an upstream, as an answer to the caller.

An upstream's own words are never repeated: they can hold its address, parts of its key, or the caller's prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from cluster.api.errors import ApiError

_MAX_RETRY_AFTER_S: Final = 3600

_WORD: Final = re.compile(r"[a-z][a-z0-9_.\[\]]{0,63}")
"""What an upstream's `code` or `param` has to look like to be handed on: a word, no sentence and no key."""

_CALLER_STATUS: Final = frozenset({400, 413, 415, 422})

_CREDENTIALS: Final = (
    502,
    "upstream_credentials",
    "The upstream did not accept the cluster's own key; tell the operator.",
)
_TIMEOUT: Final = (504, "upstream_timeout", "The upstream ran out of time; try again.")
_FAILURES: Final = {
    **dict.fromkeys((401, 402, 403), _CREDENTIALS),
    **dict.fromkeys((408, 504, 524), _TIMEOUT),
    404: (502, "upstream_not_found", "The upstream has no such model or endpoint; tell the operator to check it."),
}


class _ErrorDetail(msgspec.Struct):
    code: str | int | None = None
    param: str | None = None


class _ErrorBody(msgspec.Struct):
    error: _ErrorDetail


def timed_out(limit_s: float) -> ApiError:
    """The upstream did not finish in time."""
    return _failure(504, "upstream_timeout", f"The upstream did not answer within {limit_s:g} s; try again.")


def unreachable() -> ApiError:
    """No connection, or one that broke."""
    return _failure(502, "upstream_unreachable", "The connection to the upstream failed; try again.")


def malformed(what: str) -> ApiError:
    """The upstream answered something that is not the API. `what` is ours, never the upstream's text."""
    return _failure(502, "upstream_malformed", f"The upstream's answer is not usable: {what}; try again.")


def cut_off() -> ApiError:
    """A stream that ended before its end."""
    return _failure(502, "upstream_cut", "The upstream ended the stream before the answer was complete; try again.")


def from_status(status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
    """The answer to a caller whose request an upstream answered with a `status` other than 200."""
    if status == 429:
        wait = headers.get("retry-after", "")
        known = re.fullmatch(r"[0-9]{1,4}", wait) is not None and int(wait) <= _MAX_RETRY_AFTER_S
        advice = f"retry after {int(wait)} s" if known else "retry later"
        return ApiError(
            429,
            "upstream_rate_limited",
            f"The upstream of this model is at its rate limit; {advice}.",
            type="rate_limit_error",
            headers={"retry-after": wait} if known else None,
        )
    if status in _CALLER_STATUS:
        code, param = _details(body)
        return ApiError(
            400,
            code or "upstream_refused",
            "The upstream of this model refused the request"
            + (f" because of `{param}`" if param else "")
            + (f" ({code})" if code else "")
            + "; see the API reference of that model.",
            param=param,
        )
    if 300 <= status < 400:
        return _failure(502, "upstream_redirect", "The upstream redirects elsewhere, which is not followed.")
    return _failure(
        *_FAILURES.get(status, (502, "upstream_error", f"The upstream failed (status {status}); try again."))
    )


def from_event(error: object) -> ApiError:
    """The answer to a caller when the upstream reports an error inside a stream."""
    code = error.get("code") if isinstance(error, dict) else None
    status = code if isinstance(code, int) and not isinstance(code, bool) and 400 <= code < 600 else 502
    return from_status(status, {}, b"")


def _details(body: bytes) -> tuple[str | None, str | None]:
    try:
        detail = msgspec.json.decode(body, type=_ErrorBody).error
    except msgspec.MsgspecError:
        return None, None
    code = detail.code if isinstance(detail.code, str) and _WORD.fullmatch(detail.code) else None
    return code, detail.param if detail.param and _WORD.fullmatch(detail.param) else None


def _failure(status: int, code: str, message: str) -> ApiError:
    return ApiError(status, code, message, type="server_error")
