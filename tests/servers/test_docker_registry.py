"""The registry answers, and does what its options say."""

from __future__ import annotations

import base64
import hashlib
import urllib.error
import urllib.request

from tests.servers.docker_registry import DockerRegistry, serve_docker_registry

BLOB = b"bytes of a blob"
DIGEST = f"sha256:{hashlib.sha256(BLOB).hexdigest()}"


def ask(method: str, url: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str]]:
    """The status of the answer, and its headers by their names in lower case."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method), timeout=30) as answer:
            return answer.status, {name.lower(): value for name, value in answer.headers.items()}
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {name.lower(): value for name, value in error.headers.items()}


def push(registry: DockerRegistry) -> int:
    status, headers = ask("POST", f"{registry.url}/v2/team/one/blobs/uploads/")
    if status != 202:
        return status
    url = f"{headers['location']}&digest={DIGEST}"
    return ask("PUT", url, BLOB, **{"Content-Type": "application/octet-stream"})[0]


def delete(registry: DockerRegistry) -> int:
    return ask("DELETE", f"{registry.url}/v2/team/one/blobs/{DIGEST}")[0]


def test_blob_that_was_pushed_is_there_until_it_is_deleted(docker_registry: DockerRegistry) -> None:
    assert push(docker_registry) == 201
    with urllib.request.urlopen(f"{docker_registry.url}/v2/team/one/blobs/{DIGEST}") as answer:
        assert answer.read() == BLOB
    assert delete(docker_registry) == 202
    assert ask("HEAD", f"{docker_registry.url}/v2/team/one/blobs/{DIGEST}")[0] == 404


def test_registry_refuses_deletion_and_knows_its_users() -> None:
    with serve_docker_registry(deletion=False) as registry:
        assert push(registry) == 201
        assert delete(registry) == 405
    with serve_docker_registry(users={"alice": "correct horse"}) as registry:
        status, headers = ask("GET", f"{registry.url}/v2/")
        assert (status, headers["www-authenticate"]) == (401, 'Basic realm="tests"')
        right, wrong = (base64.b64encode(f"alice:{word}".encode()).decode() for word in ("correct horse", "battery"))
        assert ask("GET", f"{registry.url}/v2/", Authorization=f"Basic {right}")[0] == 200
        assert ask("GET", f"{registry.url}/v2/", Authorization=f"Basic {wrong}")[0] == 401


def test_registry_that_is_read_only_refuses_pushes() -> None:
    with serve_docker_registry(read_only=True) as registry:
        assert push(registry) == 405
