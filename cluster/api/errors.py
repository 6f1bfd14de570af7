"""Errors that a caller sees, in the form that OpenAI clients understand."""

from __future__ import annotations

import json
from collections.abc import Mapping


class ApiError(Exception):
    """An answer that is not 2xx.

    `message` names the field and the limit and says what to do; it never repeats what the caller sent, since error
    bodies end up in logs and traces.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        type: str = "invalid_request_error",  # noqa: A002 - the name of the field in OpenAI's error form
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status = status
        self.code = code
        self.type = type
        self.message = message
        self.param = param
        self.headers: Mapping[str, str] = dict(headers or {})
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        """Exceptions are pickled by their positional arguments unless told otherwise; this one crosses processes."""
        return _rebuild, (self.status, self.code, self.message, self.type, self.param, dict(self.headers))

    def body(self) -> bytes:
        """The JSON error body, UTF-8."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return json.dumps({"error": error}, separators=(",", ":")).encode()


def _rebuild(status: int, code: str, message: str, kind: str, param: str | None, headers: dict[str, str]) -> ApiError:
    return ApiError(status, code, message, type=kind, param=param, headers=headers)


def bad_request(param: str | None, message: str, code: str = "invalid_value") -> ApiError:
    """A 400 that names the field `param`."""
    return ApiError(400, code, message, param=param)
