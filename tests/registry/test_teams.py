"""Two people who share a delta: by one server, by several behind a proxy, and by an ordinary OCI registry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import demo
from tests.cli.program import Workplace
from tests.servers.deltareg_server import server_process
from tests.servers.docker_registry import serve_docker_registry
from tests.servers.nginx import serve_nginx
from tests.servers.object_store import Bucket

NAME = "acme/shark:1.0.0"
_PROXY = """
location / {
    proxy_pass http://servers;
    proxy_set_header Host $http_host;
    proxy_http_version 1.1;
    proxy_request_buffering off;
    proxy_buffering off;
    client_max_body_size 0;
}
"""


@pytest.fixture
def one_server(tmp_path: Path) -> Iterator[tuple[str, str]]:
    with server_process(tmp_path / "server") as server:
        assert server.token is not None
        yield server.url, server.token


@pytest.fixture
def two_servers(tmp_path: Path, database: str, bucket: Bucket) -> Iterator[tuple[str, str]]:
    """PostgreSQL, an object store, two processes, nginx before them."""
    shared = ("--database", database, "--storage", f"s3://{bucket.name}/registry")
    with ExitStack() as stack:
        servers = [stack.enter_context(server_process(tmp_path / f"server{number}", *shared)) for number in range(2)]
        names = "".join(f"server {server.url.removeprefix('http://')};" for server in servers)
        url = stack.enter_context(serve_nginx(_PROXY, around=f"upstream servers {{ {names} }}"))
        (token,) = [server.token for server in servers if server.token]
        yield url, token


def share(url: str, models: Mapping[str, Path], tmp_path: Path, **environment: str) -> None:
    """The whole way, typed by two people with a home each; what the second one gets is post, bit for bit."""
    base, post = models["antibody_4_2"], models["shark_4_2"]
    first, second = Workplace(_made(tmp_path / "first")), Workplace(_made(tmp_path / "second"))
    first.environment |= environment
    second.environment |= environment
    first.ok("diff", base, post, "--tag", NAME, "--licence", "bsd-3-clause")
    sent = first.ok("push", NAME, "--remote", url, "--json").document("transfer")
    assert sent["moved"] == sent["blobs"] > 3
    assert first.ok("push", NAME, "--remote", url, "--json").document("transfer")["moved"] == 0
    (found,) = second.ok("search", "--for", base, "--remote", url, "--json").document("search")["results"]
    assert (found["reference"], found["fit"]) == (NAME, "homologous")
    assert second.ok("pull", "acme/shark", "--remote", url, "--json").document("transfer")["digest"] == sent["digest"]
    # The same architecture, and weights of another origin.
    assert second.run("check", NAME, "--base", models["antibody_4_1"]).status == 3
    result = tmp_path / "result"
    second.ok("apply", base, NAME, "-o", result)
    assert demo.compare(result, post)[1] == []
    first.ok("channel", "set", "acme/shark:prod", "1.0.0", "--remote", url)
    assert second.ok("pull", "acme/shark:prod", "--remote", url, "--json").document("transfer")["reference"] == NAME
    first.ok("yank", NAME, "--reason", "trained on the test set", "--remote", url)
    assert "trained on the test set" in second.ok("pull", NAME, "--remote", url).err
    # Of a version that was published nothing else can be made.
    other = Workplace(_made(tmp_path / "other"))
    other.environment |= environment
    other.ok("diff", post, base, "--tag", NAME, "--licence", "bsd-3-clause")
    refused = other.run("push", NAME, "--remote", url)
    assert (refused.status, refused.codes) == (4, ["DR0301"])


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def test_by_one_server(one_server: tuple[str, str], anarcii_bf16: Mapping[str, Path], tmp_path: Path) -> None:
    url, token = one_server
    share(url, anarcii_bf16, tmp_path, DELTAREG_TOKEN=token)


@pytest.mark.slow
def test_by_two_servers_on_one_database_and_one_store(
    two_servers: tuple[str, str], anarcii_bf16: Mapping[str, Path], tmp_path: Path
) -> None:
    url, token = two_servers
    share(url, anarcii_bf16, tmp_path, DELTAREG_TOKEN=token)


def test_by_an_oci_registry(anarcii_bf16: Mapping[str, Path], tmp_path: Path) -> None:
    with serve_docker_registry() as registry:
        share(f"oci+{registry.url}/team", anarcii_bf16, tmp_path)
