"""A stand-in for Grafana's HTTP API: folders and dashboards, with its statuses, bodies and version conflicts.

After the API's documentation:
https://grafana.com/docs/grafana/latest/developers/http_api/dashboard/
https://grafana.com/docs/grafana/latest/developers/http_api/folder/
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]
Answer = tuple[int, Json]

TOKEN = "glsa_stand_in"
VIEWER = "glsa_viewer"
"""A token that may read alone."""


@dataclass
class GrafanaStandIn:
    """What it holds, and what it was asked."""

    prefix: str = ""
    """Path under which it is, as behind a proxy (`serve_from_sub_path`)."""
    url: str = ""
    folders: dict[str, Json] = field(default_factory=dict)
    dashboards: dict[str, Json] = field(default_factory=dict)
    """By uid: `dashboard` and `meta` as the API gives them."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Methods and paths, without the prefix."""
    failing: int | None = None
    """Every call is answered with this status."""
    before_save: Callable[[str], None] | None = None
    """Called with the uid of a dashboard that is to be stored, before it is: what somebody else does at this moment."""
    adds: Json = field(default_factory=lambda: {"preload": False, "fiscalYearStartMonth": 0})
    """Keys that Grafana adds to a dashboard of its own."""

    def answer(self, method: str, path: str, token: str | None, body: Json) -> Answer:
        """Status and body of the answer to a call."""
        if not path.startswith(self.prefix + "/api/"):
            return 404, {"message": "Not found"}
        path = path.removeprefix(self.prefix + "/api")
        self.asked.append((method, path))
        return self._refusal(method, token) or self._routed(method, path, body)

    def _refusal(self, method: str, token: str | None) -> Answer | None:
        if self.failing is not None:
            return self.failing, {"message": "Internal error"}
        # "401 - Unauthorized", of every call.
        if token not in {TOKEN, VIEWER}:
            return 401, {"message": "Invalid API key", "messageId": "api-key.invalid", "statusCode": 401, "traceID": ""}
        # "403 - Access denied".
        if method == "POST" and token == VIEWER:
            return 403, {
                "accessErrorId": "ACE1",
                "message": "You'll need additional permissions to perform this action.",
            }
        return None

    def _routed(self, method: str, path: str, body: Json) -> Answer:
        match method, path.strip("/").split("/"):
            case "GET", ["folders", uid]:
                return self._folder(uid)
            case "POST", ["folders"]:
                return self._create_folder(body)
            case "GET", ["dashboards", "uid", uid]:
                return self._dashboard(uid)
            case "POST", ["dashboards", "db"]:
                return self._save(body)
        return 404, {"message": "Not found"}

    def _folder(self, uid: str) -> Answer:
        # "404 - Folder not found".
        found = self.folders.get(uid)
        return (200, found) if found else (404, {"message": "folder not found", "status": "not-found"})

    def _create_folder(self, body: Json) -> Answer:
        # "412 - Precondition failed": the folder exists. "400 - Errors (invalid json, missing or invalid fields)".
        if not body.get("title"):
            return 400, {"message": "folder title cannot be empty", "status": "empty-name"}
        uid = body.get("uid") or f"made{len(self.folders)}"
        if uid in self.folders:
            return 412, {"message": "a folder with the same UID already exists", "status": "version-mismatch"}
        self.folders[uid] = {"id": len(self.folders) + 1, "uid": uid, "title": body["title"], "version": 1}
        return 200, self.folders[uid]

    def _dashboard(self, uid: str) -> Answer:
        # "404 - Dashboard not found".
        found = self.dashboards.get(uid)
        return (200, found) if found else (404, {"message": "Dashboard not found"})

    def _save(self, body: Json) -> Answer:
        made, folder = deepcopy(body["dashboard"]), body.get("folderUid")
        # "400 - Errors (invalid json, missing or invalid fields, etc)".
        if not made.get("title"):
            return 400, {"message": "Dashboard title cannot be empty", "status": "empty-name"}
        if folder is not None and folder not in self.folders:
            return 400, {"message": "folder not found"}
        uid = made["uid"]
        if self.before_save is not None:
            self.before_save(uid)
        there, overwrite = self.dashboards.get(uid), bool(body.get("overwrite"))
        # "412 - Precondition failed": `status` is `version-mismatch` or `name-exists`.
        if there is not None and not overwrite and made.get("version") != there["dashboard"]["version"]:
            message = "The dashboard has been changed by someone else"
            return 412, {"message": message, "status": "version-mismatch"}
        if not overwrite and any(
            other["dashboard"]["title"] == made["title"] and other["meta"]["folderUid"] == folder
            for key, other in self.dashboards.items()
            if key != uid
        ):
            message = "A dashboard with the same name in the folder already exists"
            return 412, {"message": message, "status": "name-exists"}
        number = len(self.dashboards) + 1 if there is None else there["dashboard"]["id"]
        version = 1 if there is None else there["dashboard"]["version"] + 1
        stored = made | self.adds | {"id": number, "version": version}
        self.dashboards[uid] = {"dashboard": stored, "meta": {"folderUid": folder, "version": version, "slug": uid}}
        said = {"id": number, "uid": uid, "url": f"/d/{uid}/{uid}", "status": "success", "version": version}
        return 200, said


@contextmanager
def grafana_stand_in(prefix: str = "") -> Iterator[GrafanaStandIn]:
    """One that listens on a free port of the loopback interface until the block ends."""
    grafana = GrafanaStandIn(prefix)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def _answer(self, body: Json) -> None:
            scheme, _, token = self.headers.get("authorization", "").partition(" ")
            status, said = grafana.answer(self.command, self.path, token if scheme == "Bearer" else None, body)
            data = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json; charset=UTF-8")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    grafana.url = f"http://127.0.0.1:{server.server_port}{prefix}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield grafana
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
