"""A Hugging Face Hub on loopback: what huggingface_hub calls in order to make, fill, read and list model repositories.

Files that are kept as large ones are sent from a second server, as from the Hub's CDN. There are the faults that real
ones have.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import yaml

__all__ = ["READER", "WRITER", "HubServer", "Model", "serve_hub"]

WRITER = "hf_writer"
READER = "hf_reader"
_LARGE = 10_000_000
_PAGE = 2


@dataclass
class Model:
    """A model repository: its commits with all of their files, the newest last, and the large files that it has."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    gated: bool = False

    @property
    def head(self) -> str:
        """The newest commit of the branch."""
        return list(self.commits)[-1]

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the newest commit."""
        return self.commits[self.head]

    def commit(self, files: Mapping[str, bytes]) -> str:
        """Put another commit on top."""
        oid = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[oid] = dict(files)
        return oid

    def rewrite(self, files: Mapping[str, bytes]) -> str:
        """Force the branch to a history of one commit; the old ones are still found by their names."""
        return self.commit(files)

    def is_large(self, path: str, size: int) -> bool:
        """Whether a file is kept by its digest, as `.gitattributes` says; all that are very large are."""
        lines = self.files.get(".gitattributes", b"").decode().splitlines()
        return size > _LARGE or any("filter=lfs" in line and fnmatchcase(path, line.split()[0]) for line in lines)

    @property
    def tags(self) -> list[str]:
        """The tags of the model card."""
        found = re.match(r"---\n(.*?)\n---\n", self.files.get("README.md", b"").decode(), re.DOTALL)
        return [] if found is None else (yaml.safe_load(found[1]) or {}).get("tags", [])


class HubServer(ThreadingHTTPServer):
    """The API. `requests` tells what was asked for; the attributes after it make faults."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Api)
        self.cdn = _CdnServer(self)
        self.lock = threading.RLock()
        self.models: dict[str, Model] = {}
        self.users = {
            WRITER: {"name": "acme", "role": "write", "orgs": ["Team"]},
            READER: {"name": "acme", "role": "read", "orgs": []},
        }
        self.requests: list[str] = []
        self.authorised: list[str | None] = []
        self.stopped = False
        self.part_size: int | None = None  # from how many bytes on files are sent in parts of that size
        self.refuse: tuple[str, int, dict[str, str]] | None = None  # requests that match, their status and headers
        self.before_commit: Callable[[], object] | None = None  # what happens before the next commit is looked at
        self.cut_uploads = 0  # uploads that are still to break off

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    def count(self, pattern: str) -> int:
        """How many requests there were that match."""
        return sum(re.search(pattern, request) is not None for request in self.requests)


class _CdnServer(ThreadingHTTPServer):
    """Where large files come from: another address, which must not see tokens."""

    daemon_threads = True

    def __init__(self, hub: HubServer) -> None:
        super().__init__(("127.0.0.1", 0), _Cdn)
        self.hub = hub
        self.authorised: list[str | None] = []
        self.cuts = 0  # answers that are still to break off in the middle
        self.damage = False  # whether a bit of what it sends is wrong

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Or each answer waits 40 ms for the client to acknowledge its head.
    disable_nagle_algorithm = True
    _body = b""

    def answer(self, status: int, body: object = b"", headers: Mapping[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.send(data)

    def answer_file(self, data: bytes, headers: Mapping[str, str]) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if wanted is None:
            self.answer(200, data, headers)
            return
        start, end = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        if start >= len(data):
            self.answer(416, headers={**headers, "Content-Range": f"bytes */{len(data)}"})
        else:
            told = {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"}
            self.answer(206, data[start : end + 1], told)

    def send(self, data: bytes) -> None:
        try:
            self.wfile.write(data)
        except OSError:  # the client has read enough
            self.close_connection = True

    def body(self) -> bytes:
        """The request's body, which has to be read before the next request, and once."""
        if "content-length" in self.headers:
            self._body = self.rfile.read(int(self.headers["content-length"]))
            del self.headers["content-length"]
        return self._body

    def log_message(self, format: str, *args: object) -> None:
        """Tests keep silent."""


class _Cdn(_Handler):
    server: _CdnServer

    def do_GET(self) -> None:
        self.server.authorised.append(self.headers.get("authorization"))
        _, repository, oid = unquote(urlsplit(self.path).path).rsplit("/", 2)
        data = self.server.hub.models[repository.replace("~", "/")].large[oid]
        if self.server.damage and data:
            data = bytes([data[0] ^ 1]) + data[1:]
        self.answer_file(data, {"ETag": f'"{oid}"'})

    def send(self, data: bytes) -> None:
        if self.server.cuts > 0 and len(data) > 1:
            self.server.cuts -= 1
            data, self.close_connection = data[: len(data) // 2], True
        super().send(data)


class _Api(_Handler):
    server: HubServer

    def do_GET(self) -> None:
        self._handle(
            (r"/api/whoami-v2", self._whoami),
            (r"/api/models", self._models),
            (r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", self._model),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
        )

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._handle(
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", lambda: self.answer(200, {"errors": [], "warnings": []})),
            (r"/api/models/([^/]+/[^/]+)/paths-info/([^/]+)", self._paths_info),
            (r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", self._preupload),
            (r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", self._commit),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            (r"/upload/([^/]+/[^/]+)/([0-9a-f]{64})", self._complete),
            (r"/verify/([^/]+/[^/]+)", self._verify),
        )

    def do_PUT(self) -> None:
        self._handle((r"/upload/([^/]+/[^/]+)/([0-9a-f]{64})(?:/(\d+))?", self._receive))

    def _handle(self, *routes: tuple[str, Callable[..., None]]) -> None:
        server = self.server
        if server.stopped:  # a connection that was kept alive
            self.close_connection = True
            return
        path = unquote(urlsplit(self.path).path)
        asked = f"{self.command} {path}"
        server.requests.append(asked)
        server.authorised.append(self.headers.get("authorization"))
        if server.refuse is not None and re.search(server.refuse[0], asked):
            self.body()
            self.answer(server.refuse[1], {"error": "refused"}, server.refuse[2])
            return
        if self.command == "POST":
            self.body()
        for pattern, method in routes:
            if (found := re.fullmatch(pattern, path)) is not None:
                method(*found.groups())
                return
        self.body()
        self.answer(404, {"error": "no such route"})

    @property
    def _user(self) -> dict[str, object] | None:
        return self.server.users.get((self.headers.get("authorization") or "").removeprefix("Bearer "))

    def _member(self, owner: str) -> bool:
        user = self._user
        return user is not None and owner in (user["name"], *user["orgs"])  # type: ignore[misc]

    def _readable(self, repository: str) -> Model | None:
        """The model; where there is none for this user, that is answered."""
        model = self.server.models.get(repository)
        if model is None or (model.private and not self._member(repository.partition("/")[0])):
            self.answer(404 if self._user else 401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        return model

    def _writable(self, repository: str) -> Model | None:
        model = self._readable(repository)
        if model is not None and not self._may_write(repository.partition("/")[0]):
            self.answer(403, {"error": "You don't have the rights"})
            return None
        return model

    def _may_write(self, owner: str) -> bool:
        user = self._user
        return user is not None and user["role"] == "write" and self._member(owner)

    def _whoami(self) -> None:
        user = self._user
        if user is None:
            self.answer(401, {"error": "Invalid user token"})
            return
        orgs = [{"name": name, "roleInOrg": "write"} for name in user["orgs"]]  # type: ignore[attr-defined]
        access = {"accessToken": {"displayName": "a token", "role": user["role"]}}
        self.answer(200, {"type": "user", "name": user["name"], "orgs": orgs, "auth": access})

    def _models(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        author, tags, start = query["author"][0], query.get("filter", []), int(query.get("cursor", ["0"])[0])
        found = [
            {"id": name, "modelId": name, "tags": model.tags}
            for name, model in sorted(self.server.models.items())
            if name.partition("/")[0] == author
            and set(tags) <= set(model.tags)
            and (not model.private or self._member(author))
        ]
        more = {}
        if len(found) > start + _PAGE:
            following = urlencode({**query, "cursor": [start + _PAGE]}, doseq=True)
            more = {"Link": f'<{self.server.url}/api/models?{following}>; rel="next"'}
        self.answer(200, found[start : start + _PAGE], more)

    def _create(self) -> None:
        wanted = json.loads(self.body())
        owner = wanted["organization"] or (self._user or {"name": ""})["name"]
        name = f"{owner}/{wanted['name']}"
        with self.server.lock:
            if self._user is None:
                self.answer(401, {"error": "Unauthorized"})
            elif name in self.server.models:
                self.answer(409, {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"})
            elif not self._may_write(str(owner)):
                self.answer(403, {"error": "You don't have the rights"}, {"X-Error-Message": "no rights"})
            else:
                model = Model(private=wanted.get("visibility") == "private" or wanted.get("private") is True)
                model.commit({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
                self.server.models[name] = model
                self.answer(200, {"url": f"{self.server.url}/{name}", "id": name})

    def _revision(self, model: Model, revision: str | None) -> str | None:
        commit = model.head if revision in (None, "main") else revision
        if commit in model.commits:
            return commit
        self.answer(404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"})
        return None

    def _model(self, repository: str, revision: str | None) -> None:
        model = self._readable(repository)
        if model is None or (commit := self._revision(model, revision)) is None:
            return
        siblings = [{"rfilename": path} for path in model.commits[commit]]
        told = {"id": repository, "modelId": repository, "private": model.private, "tags": model.tags}
        self.answer(200, {**told, "sha": commit, "siblings": siblings})

    def _paths_info(self, repository: str, revision: str) -> None:
        paths = parse_qs(self.body().decode()).get("paths", [])
        model = self._readable(repository)
        if model is None or (commit := self._revision(model, revision)) is None:
            return
        told: list[dict[str, object]] = []
        for path in paths:
            data = model.commits[commit].get(path)
            if data is not None:
                oid = _pointed(data)
                large = model.large[oid] if oid else data
                lfs = {"lfs": {"oid": oid, "size": len(large), "pointerSize": len(data)}} if oid else {}
                told.append({"type": "file", "path": path, "size": len(large), "oid": _git_oid(data), **lfs})
        self.answer(200, told)

    def _resolve(self, repository: str, revision: str, path: str) -> None:
        model = self._readable(repository)
        if model is None or (commit := self._revision(model, revision)) is None:
            return
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        data = model.commits[commit].get(path)
        if model.gated:
            self.answer(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
        elif data is None:
            self.answer(404, {"error": "Entry not found"}, {**headers, "X-Error-Code": "EntryNotFound"})
        elif (oid := _pointed(data)) is not None:
            size = str(len(model.large[oid]))
            place = f"{self.server.cdn.url}/{repository.replace('/', '~')}/{oid}"
            self.answer(302, headers={**headers, "X-Linked-Etag": oid, "X-Linked-Size": size, "Location": place})
        else:
            self.answer_file(data, {**headers, "ETag": f'"{_git_oid(data)}"'})

    def _preupload(self, repository: str, revision: str) -> None:
        files = json.loads(self.body())["files"]
        model = self._writable(repository)
        if model is None:
            return
        told: list[dict[str, object]] = []
        for file in files:
            known = model.files.get(file["path"])
            mode = "lfs" if model.is_large(file["path"], file["size"]) else "regular"
            oid = None if known is None else _pointed(known) or _git_oid(known)
            told.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer(200, {"files": told})

    def _batch(self, repository: str) -> None:
        wanted = json.loads(self.body())["objects"]
        model = self._writable(repository)
        if model is None:
            return
        objects: list[dict[str, object]] = []
        for one in wanted:
            oid, size = one["oid"], one["size"]
            place = f"{self.server.url}/upload/{repository}/{oid}"
            upload: dict[str, object] = {"href": place}
            if self.server.part_size is not None and size > self.server.part_size:
                parts = -(-size // self.server.part_size)
                numbers = {str(number): f"{place}/{number}" for number in range(1, parts + 1)}
                upload["header"] = {"chunk_size": str(self.server.part_size), **numbers}
            actions = {"upload": upload, "verify": {"href": f"{self.server.url}/verify/{repository}"}}
            objects.append({"oid": oid, "size": size, **({} if oid in model.large else {"actions": actions})})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def _receive(self, repository: str, oid: str, part: str | None) -> None:
        if self.server.cut_uploads > 0:
            self.server.cut_uploads -= 1
            self.rfile.read(1000)
            self.close_connection = True
            self.connection.close()
            return
        data = self.body()
        name = f"{oid}/{part}" if part else oid
        if part is None and hashlib.sha256(data).hexdigest() != oid:
            self.answer(400, {"error": "wrong bytes"})
            return
        self.server.models[repository].large[name] = data
        self.answer(200, headers={"ETag": f'"{part or oid}"'})

    def _complete(self, repository: str, oid: str) -> None:
        parts = json.loads(self.body())["parts"]
        large = self.server.models[repository].large
        data = b"".join(large.pop(f"{oid}/{part['partNumber']}") for part in parts)
        if hashlib.sha256(data).hexdigest() != oid:
            self.answer(400, {"error": "wrong bytes"})
            return
        large[oid] = data
        self.answer(200, {})

    def _verify(self, repository: str) -> None:
        wanted = json.loads(self.body())
        found = self.server.models[repository].large.get(wanted["oid"])
        self.answer(200 if found is not None and len(found) == wanted["size"] else 404, {})

    def _commit(self, repository: str, revision: str) -> None:
        header, *operations = [json.loads(line) for line in self.body().splitlines()]
        model = self._writable(repository)
        if model is None:
            return
        if self.server.before_commit is not None:
            first, self.server.before_commit = self.server.before_commit, None
            first()
        with self.server.lock:
            parent = header["value"].get("parentCommit")
            if parent is not None and parent != model.head:
                self.answer(412, {"error": "A commit has happened since. Please refresh and try again."})
                return
            files = dict(model.files)
            for operation in operations:
                value = operation["value"]
                if operation["key"] == "lfsFile":
                    if value["oid"] not in model.large:
                        self.answer(400, {"error": "an LFS pointer pointed to a file that does not exist"})
                        return
                    files[value["path"]] = _pointer(value["oid"], value["size"])
                elif operation["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                else:
                    del files[value["path"]]
            oid = model.commit(files)
        self.answer(200, {"commitUrl": f"{self.server.url}/{repository}/commit/{oid}", "commitOid": oid})


def _pointer(oid: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n".encode()


def _pointed(data: bytes) -> str | None:
    found = re.fullmatch(rb"version https://git-lfs\S+\noid sha256:([0-9a-f]{64})\nsize \d+\n", data)
    return None if found is None else found[1].decode()


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serve_hub() -> Iterator[HubServer]:
    """Run a hub and its CDN as long as the body runs."""
    with HubServer() as server, server.cdn as cdn:
        threads = [threading.Thread(target=one.serve_forever, args=(0.02,), daemon=True) for one in (server, cdn)]
        for thread in threads:
            thread.start()
        try:
            yield server
        finally:
            server.stopped = True
            for one, thread in zip((server, cdn), threads, strict=True):
                one.shutdown()
                thread.join()
