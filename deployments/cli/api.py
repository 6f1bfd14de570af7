"""A small client of the cluster's HTTP API, on the standard library: `import httpx` takes longer than most commands."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import msgspec

from deployments.cli.errors import CliError, ExitCode
from deployments.cli.options import KEY_VARIABLE

if TYPE_CHECKING:
    from deployments.cli.place import Place

T = TypeVar("T")

TIMEOUT_S = 5.0
_MAX_BODY = 16 * 2**20


class ApiUnreachableError(CliError):
    """Nobody answers at the URL, or not in HTTP."""


class _Failure(msgspec.Struct, frozen=True):
    message: str = ""
    code: str | None = None


class _FailureBody(msgspec.Struct, frozen=True):
    error: _Failure = _Failure()


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer whose body can be read once, whole or by lines."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: http.client.HTTPResponse


class Api:
    """One cluster's API. Every call opens a connection of its own."""

    def __init__(self, url: str, key: str | None, place: Place | None = None) -> None:
        """`url` with or without `/v1`; hints are about `place`.

        Raises `CliError` for what is no http or https URL, or a key that no key can be.
        """
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname, parts.port
        except ValueError:
            raise _no_url(url) from None
        if parts.scheme not in ("http", "https") or not host:
            raise _no_url(url)
        self._secure = parts.scheme == "https"
        self._host = host
        self._port = port
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        self._key = _checked_key(key)
        self._place = place
        self.url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{self._prefix}"

    @property
    def has_key(self) -> bool:
        """Whether requests carry a key."""
        return bool(self._key)

    def get(self, path: str, form: type[T], accept: Iterable[int] = (200,)) -> T:
        """The JSON at `path`. Raises `ApiUnreachableError`, or `CliError` for another status than those accepted."""
        body = self.text(path, accept)
        try:
            return msgspec.json.decode(body, type=form)
        except msgspec.MsgspecError as error:
            raise ApiUnreachableError(f"{self.url}{path} is not answered by Pointsman: {error}") from None

    def text(self, path: str, accept: Iterable[int] = (200,)) -> bytes:
        """The body at `path`; raises like `get`."""
        reply = self.request("GET", path, None, TIMEOUT_S)
        try:
            body = reply.body.read(_MAX_BODY)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None
        finally:
            reply.body.close()
        if reply.status not in accept:
            raise self.refusal(reply.status, body)
        return body

    def post(self, path: str, body: object, timeout_s: float) -> Reply:
        """Send JSON; the caller reads and closes the reply. Raises `ApiUnreachableError`."""
        return self.request("POST", path, json.dumps(body).encode(), timeout_s)

    def request(self, method: str, path: str, body: bytes | None, timeout_s: float) -> Reply:
        """One request; `timeout_s` bounds each wait for the other side. Raises `ApiUnreachableError`."""
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=timeout_s)
        headers = {"connection": "close", "accept": "*/*"}
        if body is not None:
            headers["content-type"] = "application/json"
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        try:
            connection.request(method, self._prefix + path, body, headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            raise self._unreachable(error) from None
        return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, response)

    def refusal(self, status: int, body: bytes) -> CliError:
        """An HTTP error as an error of the command line."""
        try:
            message = msgspec.json.decode(body, type=_FailureBody).error.message
        except msgspec.MsgspecError:
            message = ""
        message = message or f"the cluster answered with status {status}"
        if status == 401:
            another = f"Make a new one with `{self._command('keys add NAME')}`."
            remedy = another if self.has_key else f"Set {KEY_VARIABLE} or pass --key."
            return CliError(message, remedy, ExitCode.REFUSED)
        return CliError(f"{message} (status {status})")

    def _command(self, arguments: str) -> str:
        return self._place.command(arguments) if self._place is not None else f"pointsman {arguments}"

    def _unreachable(self, error: Exception) -> ApiUnreachableError:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        return ApiUnreachableError(
            f"{self.url} does not answer: {why}", f"See `{self._command('status')}`.", ExitCode.REFUSED
        )


def _no_url(url: str) -> CliError:
    return CliError(f"{url} is no URL of a cluster", "Write it as http://HOST:PORT.", ExitCode.USAGE)


def _checked_key(key: str | None) -> str | None:
    """The key without the line end that a file leaves behind.

    What cannot stand in a header is refused here: `http.client` would quote the whole key in its error.
    """
    key = key.strip() if key is not None else None
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise CliError(
            "the API key holds characters that no key has",
            f"Copy it again, on one line, into {KEY_VARIABLE} or --key.",
            ExitCode.USAGE,
        )
    return key
