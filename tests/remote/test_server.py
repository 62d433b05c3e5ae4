"""A deltareg server as a remote."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from deltareg.catalog import Registry
from deltareg.catalog.search import Query
from deltareg.digest import sha256
from deltareg.errors import BadManifest, NotAllowed, NotFound, NotSignedIn, RemoteUnavailable
from deltareg.remote import Network, Remote, is_searchable, open_remote
from deltareg.remote.network import Patience
from deltareg.transfer import pull, push
from tests.contracts.remote_contract import RemoteContract
from tests.deltas import publish
from tests.registry.deltas import pack_of
from tests.remote.site import Asked, say, serve_site
from tests.servers.deltareg_server import RunningServer, running_server


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


# --- two homes and a server ---


def test_delta_goes_from_one_home_to_another_by_a_server(server: RunningServer, tmp_path: Path) -> None:
    first, second = Registry(tmp_path / "first"), Registry(tmp_path / "second")
    digest = publish(first.store, "acme/search:1.0.0", [pack_of(f"{number}") for number in range(5)])
    remote = client(server.url, server.token)
    sent = push(first, "acme/search:1.0.0", remote)
    assert (sent.blobs, sent.sent) == (7, 7)
    assert push(first, "acme/search:1.0.0", remote).sent == 0
    fetched = pull(second, "acme/search", client(server.url, server.token))
    assert (fetched.digest, fetched.sent) == (digest, 7)
    assert second.store.read(digest) == first.store.read(digest)
    assert is_searchable(remote)
    wanted = Query("search", target=first.artifact("acme/search").config.fingerprint)
    (row,) = remote.search(wanted).results
    assert (row.reference, row.digest, row.fit) == ("acme/search:1.0.0", digest, "homologous")


def test_who_is_not_known_or_may_not_is_told_what_to_do(server: RunningServer, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "home")
    publish(registry.store, "acme/search:1.0.0", [pack_of("x")])
    push(registry, "acme/search:1.0.0", client(server.url, server.token))
    with pytest.raises(NotSignedIn) as caught:
        pull(registry, "acme/search", client(server.url, None))
    assert caught.value.hint == f"deltareg login {server.url}"
    with pytest.raises(NotSignedIn, match="not known here"):
        pull(registry, "acme/search", client(server.url, "drt_wrong"))
    reader = client(server.url, server.user("rita", acme="reader"))
    assert pull(registry, "acme/search", reader).sent == 0
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
