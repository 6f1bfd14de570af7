"""Brings dashboards to a Grafana: each is made, changed, or left as it is.

Grafana's HTTP API:
https://grafana.com/docs/grafana/latest/developers/http_api/dashboard/
https://grafana.com/docs/grafana/latest/developers/http_api/folder/
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit, urlunsplit

from grafana_client.api import GrafanaApi
from grafana_client.client import GrafanaClientError, GrafanaException, GrafanaTimeoutError

from deployments.dashboards.difference import Json, comparable, unified
from deployments.dashboards.grafana_json import to_json
from deployments.dashboards.model import Dashboard

FOLDER_UID: Final = "pointsman"
FOLDER_TITLE: Final = "Pointsman"
TIMEOUT_S: Final = 10.0
MESSAGE: Final = "pointsman dashboards push"
"""In Grafana's history of a dashboard."""


class Outcome(StrEnum):
    """What became of a dashboard, or would."""

    CREATED = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Pushed:
    """One dashboard, and what became of it."""

    uid: str
    title: str
    outcome: Outcome
    difference: tuple[str, ...] = ()
    """Lines of a unified difference."""


class GrafanaRefusedError(Exception):
    """Grafana did not do what it was asked. `remedy` says what to do; neither ever holds a token."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


class AddressError(ValueError):
    """That is no address of a Grafana."""


def checked_address(url: str) -> str:
    """The URL as Grafana's client needs it, its path with a slash at its end. Raises `AddressError`."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise AddressError("the address of Grafana begins with http:// or https:// and names a host")
    if parts.username is not None or parts.password is not None:
        raise AddressError("the address of Grafana holds a user or a password, which others can see; use a token")
    if parts.query or parts.fragment:
        raise AddressError("the address of Grafana ends with its path, without `?` and `#`")
    try:
        _ = parts.port
    except ValueError:
        raise AddressError("the port in the address of Grafana is no port") from None
    path = parts.path.strip("/")
    return urlunsplit((parts.scheme, parts.netloc, f"/{path}/" if path else "", "", ""))


class Grafana:
    """A Grafana server, with a token of a service account."""

    def __init__(self, url: str, token: str) -> None:
        """Opens no connection. Raises `AddressError`."""
        self._url = checked_address(url)
        self._api = GrafanaApi.from_url(self._url, credential=token, timeout=TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Closes its connections."""
        self._api.client.s.close()

    def push(self, dashboards: Sequence[Dashboard], *, dry_run: bool = False) -> Iterator[Pushed]:
        """Bring each dashboard to Grafana; with `dry_run` only say what would become of it.

        Raises `GrafanaRefusedError`; those before it are in Grafana then, and the next push finds them unchanged.
        """
        if not dry_run and self._get(lambda: self._api.folder.get_folder(FOLDER_UID)) is None:
            with self._errors(f"the folder {FOLDER_TITLE}"):
                self._api.folder.create_folder(FOLDER_TITLE, uid=FOLDER_UID)
        for dashboard in dashboards:
            yield self._push(dashboard, dry_run=dry_run)

    def _push(self, dashboard: Dashboard, *, dry_run: bool) -> Pushed:
        found = self._get(lambda: self._api.dashboard.get_dashboard(dashboard.uid))
        ours = to_json(dashboard)
        if found is None:
            wanted, there, outcome, version = ours, None, Outcome.CREATED, None
        elif not (isinstance(found.get("dashboard"), dict) and isinstance(found.get("meta"), dict)):
            raise self._no_grafana()
        else:
            wanted, there = comparable(ours, found["dashboard"])
            # A dashboard that was moved to another folder is brought back.
            wanted, there = {**wanted, "folder": FOLDER_UID}, {**there, "folder": found["meta"].get("folderUid")}
            outcome = Outcome.UNCHANGED if wanted == there else Outcome.CHANGED
            version = found["dashboard"].get("version")
        if outcome is not Outcome.UNCHANGED and not dry_run:
            self._save(dashboard.title, ours, version)
        return Pushed(dashboard.uid, dashboard.title, outcome, tuple(unified(dashboard.uid, there, wanted)))

    def _save(self, title: str, ours: Json, version: int | None) -> None:
        """Store it as what follows `version`; None: there is none so far."""
        stored = ours | ({} if version is None else {"version": version})
        # Not `overwrite`: what somebody changed since it was read is refused (412) and not lost.
        body = {"dashboard": stored, "folderUid": FOLDER_UID, "overwrite": False, "message": MESSAGE}
        with self._errors(f"the dashboard {title}"):
            self._api.dashboard.update_dashboard(body)

    def _get(self, call: Callable[[], Any]) -> Json | None:
        """What is asked for; None: Grafana has no such thing."""
        with self._errors("what is asked for"):
            try:
                found = call()
            except GrafanaClientError as error:
                if error.status_code == 404:
                    return None
                raise
        if not isinstance(found, dict):
            raise self._no_grafana()
        return found

    def _no_grafana(self) -> GrafanaRefusedError:
        return GrafanaRefusedError(
            f"{self._url} answers, but not as Grafana does",
            "Name the address under which Grafana's pages are, with its path if it has one.",
        )

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Turns the errors of Grafana's client into one that says what to do."""
        try:
            yield
        except GrafanaTimeoutError:
            raise GrafanaRefusedError(
                f"Grafana at {self._url} did not answer within {TIMEOUT_S:g} s", "Try again when it is less busy."
            ) from None
        except GrafanaException as error:
            raise _refused(error, what, self._url) from None
        except OSError as error:
            # Also what the HTTP library of Grafana's client raises: all of that is one.
            raise GrafanaRefusedError(
                f"Grafana at {self._url} cannot be reached ({type(error).__name__})",
                "Is it running, and is this its address?",
            ) from None
        except ValueError:
            raise GrafanaRefusedError(
                f"{self._url} answers, but not as Grafana does",
                "Name the address under which Grafana's pages are, with its path if it has one.",
            ) from None


def _refused(error: GrafanaException, what: str, url: str) -> GrafanaRefusedError:
    """By the statuses that the API documents for these calls."""
    status = error.status_code
    said = error.response.get("status") if isinstance(error.response, dict) else None
    known = {
        401: (
            f"Grafana at {url} refuses the token",
            "Make one: Administration, Service accounts, Add token; and check that it is for this Grafana.",
        ),
        403: (
            f"the token may not store {what}",
            (
                "Give its service account the role Editor, or folders:create, folders:read, dashboards:create, "
                "dashboards:read and dashboards:write."
            ),
        ),
        409: (f"{what} is there already under another uid", "Delete or rename it in Grafana."),
        412: (f"somebody changed {what} at this moment", "Push again: the difference is computed anew."),
    }
    if status == 412 and said == "name-exists":
        message = f"the folder {FOLDER_TITLE} has another dashboard of the name of {what}"
        return GrafanaRefusedError(message, "Delete or rename it in Grafana, then push again.")
    if status >= 500:
        return GrafanaRefusedError(f"Grafana at {url} failed with status {status}", "See its log, then push again.")
    message = f"Grafana at {url} refuses {what} with status {status}"
    return GrafanaRefusedError(*known.get(status, (message, "Is it Grafana 10.4 or later? Its log says more.")))
