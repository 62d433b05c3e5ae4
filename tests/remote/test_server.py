"""A deltareg server as a remote."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from deltareg.catalog import Registry
from deltareg.catalog.search import Query
from deltareg.digest import Digest, sha256
from deltareg.errors import BadManifest, NotAllowed, NotFound, NotSignedIn, RemoteUnavailable
from deltareg.remote import Network, Remote, is_searchable, open_remote
from deltareg.remote.network import Patience
from deltareg.store import Store
from deltareg.transfer import pull, push
from tests.contracts.remote_contract import REPOSITORY, Counted, RemoteContract, received, send, stored
from tests.deltas import noise, publish
from tests.registry.deltas import pack_of
from tests.registry.rows import put_versions
from tests.remote.cutting import cutting
from tests.remote.site import Asked, say, serve_site
from tests.servers.deltareg_server import RunningServer, running_server
from tests.servers.nginx import serve_nginx


def client(url: str, token: str | None) -> Remote:
    environment = {} if token is None else {"DELTAREG_TOKEN": token}
    return open_remote(url, Network.of(environment, [url]))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    with running_server(tmp_path / "server") as running:
        yield running


class TestServerRemote(RemoteContract):
    @pytest.fixture
    def remote(self, server: RunningServer) -> Iterator[Remote]:
        self._token = server.token
        yield client(server.url, server.token)

    def another(self, remote: Remote) -> Remote:
        return client(remote.url, self._token)


# --- uploads ---


def test_upload_whose_connection_is_cut_goes_on_where_it_was(server: RunningServer, tmp_path: Path) -> None:
    local = Store(tmp_path / "local")
    blob = stored(local, noise(24_000_000))
    with cutting(server.url, after=4_000_000, times=5) as url:
        counted = Counted()
        # More cuts than there are tries: each one came further. What a cut left in sockets' buffers is sent again.
        assert send(client(url, server.token), local, blob, counted) < 1.5 * blob.size
        assert counted.total == blob.size
    assert received(client(server.url, server.token), blob) == noise(24_000_000)


def test_upload_that_gets_nowhere_is_given_up_and_gone_on_with_later(server: RunningServer, tmp_path: Path) -> None:
    local = Store(tmp_path / "local")
    blob = stored(local, noise(3_000_000))
    with cutting(server.url, after=1_000, times=50) as url, pytest.raises(RemoteUnavailable):
        send(client(url, server.token), local, blob)
    assert client(server.url, server.token).missing(REPOSITORY, [Digest(blob.digest)]) == {blob.digest}
    assert send(client(server.url, server.token), local, blob) <= blob.size
    assert received(client(server.url, server.token), blob) == noise(3_000_000)


def test_proxy_that_takes_little_at_a_time_gets_chunks(server: RunningServer, tmp_path: Path) -> None:
    local = Store(tmp_path / "local")
    first, second = stored(local, noise(2_000_000)), stored(local, noise(2_000_000, 1))
    rule = f"client_max_body_size 300k; proxy_pass {server.url}; proxy_set_header Host $http_host;"
    with serve_nginx(f"location / {{ {rule} }}") as url:
        remote, counted = client(url, server.token), Counted()
        # One blob is refused as a whole, to find that out.
        assert first.size < send(remote, local, first, counted) <= 2 * first.size
        assert send(remote, local, second, counted) == second.size
        assert counted.total == 2 * first.size
        assert received(remote, first) == noise(2_000_000)
        assert received(remote, second) == noise(2_000_000, 1)


def test_blob_goes_in_one_request(server: RunningServer, tmp_path: Path) -> None:
    local = Store(tmp_path / "local")
    blob = stored(local, noise(20_000_000))
    with server.client(anonymous=True) as plain:

        def uploads() -> float:
            lines = plain.get("/metrics").text.splitlines()
            return sum(float(line.split()[-1]) for line in lines if "_requests_total" in line and "/uploads/" in line)

        before = uploads()
        send(client(server.url, server.token), local, blob)
        assert uploads() - before == 2


# --- two homes and a server ---


def test_delta_goes_from_one_home_to_another_by_a_server(server: RunningServer, tmp_path: Path) -> None:
    first, second = Registry(tmp_path / "first"), Registry(tmp_path / "second")
    digest = publish(first.store, "acme/search:1.0.0", [pack_of(f"{number}") for number in range(5)])
    remote = client(server.url, server.token)
    sent = push(first, "acme/search:1.0.0", remote)
    assert (sent.blobs, sent.moved) == (7, 7)
    assert push(first, "acme/search:1.0.0", remote).moved == 0
    fetched = pull(second, "acme/search", client(server.url, server.token))
    assert (fetched.digest, fetched.moved) == (digest, 7)
    assert second.store.read(digest) == first.store.read(digest)
    assert is_searchable(remote)
    wanted = Query("search", target=first.artifact("acme/search").config.fingerprint)
    (row,) = remote.search(wanted).results
    assert (row.reference, row.digest, row.fit) == ("acme/search:1.0.0", digest, "homologous")


def test_search_for_more_than_one_page_gets_all_of_it(server: RunningServer) -> None:
    found = [
        {"namespace": "acme", "name": f"delta{number // 100:02}", "version": f"1.{number % 100}.0"}
        for number in range(2300)
    ]
    with server.state.database.writing() as connection:
        put_versions(connection, found, public=True)
    remote = client(server.url, server.token)
    assert is_searchable(remote)
    every = remote.search(Query(limit=100_000))
    assert (len(every.results), every.total) == (2300, 2300)
    assert len({row.reference for row in every.results}) == 2300
    for limit in (999, 1000, 1001, 2300):
        assert [row.reference for row in remote.search(Query(limit=limit)).results] == [
            row.reference for row in every.results[:limit]
        ]


def test_search_ends_where_a_server_goes_on_without_results() -> None:
    def answer(asked: Asked, before: int) -> None:
        page = {"results": [], "total": 9, "seconds": 0, "nextCursor": "more"}
        others = {"/api/v1": {"registry": "deltareg"}, "/api/v1/whoami": {"user": "ann"}}
        say(asked, 200, others.get(asked.path, page))

    with serve_site(answer) as site:
        remote = client(site.url, None)
        assert is_searchable(remote)
        report = remote.search(Query(limit=10))
        assert (report.results, report.total) == ([], 9)
        assert sum(asked.path.startswith("/api/v1/search?") for asked in site.requests) == 1


def test_who_is_not_known_or_may_not_is_told_what_to_do(server: RunningServer, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "home")
    publish(registry.store, "acme/search:1.0.0", [pack_of("x")])
    push(registry, "acme/search:1.0.0", client(server.url, server.token))
    with pytest.raises(NotSignedIn) as caught:
        pull(registry, "acme/search", client(server.url, None))
    assert caught.value.hint == f"deltareg login {server.url}"
    assert caught.value.message == (
        "there is no namespace acme that everybody may read: the name is wrong, or it needs a token"
    )
    with pytest.raises(NotSignedIn, match="not known here"):
        pull(registry, "acme/search", client(server.url, "drt_wrong"))
    reader = client(server.url, server.user("rita", acme="reader"))
    assert pull(registry, "acme/search", reader).moved == 0
    assert not reader.capabilities().writable
    publish(registry.store, "acme/search:1.1.0", [pack_of("y")])
    with pytest.raises(NotAllowed, match="publisher"):
        push(registry, "acme/search:1.1.0", reader)
    with pytest.raises(NotFound):
        pull(registry, "acme/search", client(server.url, server.user("stranger")))


def test_server_has_nothing_to_say_of_a_delta_that_was_not_asked_for() -> None:
    told = {"reference": "acme/trusted:9.9.9", "digest": sha256(b""), "size": 1}

    def answer(asked: Asked, before: int) -> None:
        say(asked, 200, {"registry": "deltareg"} if asked.path == "/api/v1" else {"entries": [told]})

    with serve_site(answer) as site:
        assert [str(one.reference) for one in client(site.url, None).list("acme/trusted")] == ["acme/trusted:9.9.9"]
        with pytest.raises(BadManifest, match="acme/trusted:9"):
            client(site.url, None).list("evil/other")


def test_server_that_is_gone_is_unavailable(tmp_path: Path) -> None:
    with running_server(tmp_path / "server") as server:
        remote = client(server.url, server.token)
        assert remote.list() == []
    network = replace(Network(), patience=Patience(connect=1, silence=1, total=1, attempts=2))
    with pytest.raises(RemoteUnavailable):
        open_remote(server.url, network).list()
