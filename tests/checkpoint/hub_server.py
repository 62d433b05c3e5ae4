"""A hub on loopback: the part of its HTTP interface that reading models takes, with the faults that real ones have."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from tests.checkpoint.samples import COMMIT

__all__ = ["HubServer", "serve_hub"]

_REVISIONS = (COMMIT, "main", "v1")


class HubServer(ThreadingHTTPServer):
    """Serves one model. `requests` and `sent` tell what was asked for, and how many bytes of files went out."""

    daemon_threads = True

    def __init__(self, repository: str, files: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repository = repository
        self.files = dict(files)
        self.stopped = False
        self.requests: list[str] = []
        self.tokens: list[str | None] = []
        self.sent = 0
        self.ranges = True  # whether Range is honoured
        self.shift = 0  # bytes by which the ranges that are sent miss those that were asked for
        self.redirect = False  # whether files are sent from another path, as from the hub's CDN
        self.failures = 0  # answers with status 503 that are still to come
        self.cuts = 0  # answers that are still to break off in the middle
        self.status: tuple[int, str] | None = None  # an error that is given to every request

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        if server.stopped:  # a connection that was kept alive
            self.close_connection = True
            return
        path = unquote(urlsplit(self.path).path)
        server.requests.append(f"{self.command} {path} {self.headers.get('range', '')}".strip())
        server.tokens.append(self.headers.get("authorization"))
        if server.status is not None:
            self._answer(server.status[0], headers={"X-Error-Code": server.status[1]})
        elif server.failures > 0:
            server.failures -= 1
            self._answer(503)
        elif path.startswith("/api/models/"):
            self._answer_api(path.removeprefix("/api/models/"))
        else:
            self._answer_file(path)

    do_HEAD = do_GET

    def _answer_api(self, path: str) -> None:
        found = re.fullmatch(r"([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        if found is None or found[1] != self.server.repository:
            self._answer(404, headers={"X-Error-Code": "RepoNotFound"})
        elif (found[3] or "main") not in _REVISIONS:
            self._answer(404, headers={"X-Error-Code": "RevisionNotFound"})
        elif found[2] == "tree":
            files = self.server.files.items()
            tree = [{"type": "file", "path": name, "size": len(data), "oid": _etag(data)} for name, data in files]
            self._answer(200, json.dumps(tree).encode())
        else:
            siblings = [{"rfilename": name} for name in self.server.files]
            self._answer(200, json.dumps({"id": found[1], "sha": COMMIT, "siblings": siblings}).encode())

    def _answer_file(self, path: str) -> None:
        found = re.fullmatch(rf"(/cdn)?/{self.server.repository}/resolve/([^/]+)/(.+)", path)
        data = self.server.files.get(found[3]) if found is not None and found[2] in _REVISIONS else None
        if found is None or data is None:
            self._answer(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        headers = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if self.server.redirect and found[1] is None and self.command == "GET":
            self._answer(302, headers={**headers, "Location": "/cdn" + path})
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if wanted is None or not self.server.ranges:
            self._answer(200, data, headers)
            return
        start, end = int(wanted[1]) + self.server.shift, min(int(wanted[2] or len(data)), len(data) - 1)
        if start >= len(data):
            self._answer(416, headers={"Content-Range": f"bytes */{len(data)}"})
        else:
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            self._answer(206, data[start : end + 1], headers)

    def _answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.cuts > 0 and status == 206:
            self.server.cuts -= 1
            body, self.close_connection = body[: len(body) // 2], True
        try:
            for start in range(0, len(body), 65536):
                self.wfile.write(body[start : start + 65536])
                self.server.sent += len(body[start : start + 65536])
        except OSError:  # the client has read enough
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Tests keep silent."""


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextmanager
def serve_hub(repository: str, files: Mapping[str, bytes]) -> Iterator[HubServer]:
    """Run a server as long as the body runs."""
    with HubServer(repository, files) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.stopped = True
            server.shutdown()
            thread.join()
