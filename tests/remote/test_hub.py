"""The remote on the Hugging Face Hub, over a hub on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deltareg.checkpoint import Hub
from deltareg.digest import Digest
from deltareg.manifest import Descriptor
from deltareg.remote import Remote
from deltareg.remote.hub import HubRemote
from deltareg.store import Store
from tests.contracts.remote_contract import RemoteContract, publish
from tests.servers.hub_server import WRITER, HubServer, serve_hub


@pytest.fixture
def server() -> Iterator[HubServer]:
    with serve_hub() as running:
        yield running


class TestHubRemote(RemoteContract):
    @pytest.fixture
    def remote(self, server: HubServer) -> Iterator[Remote]:
        self.hub = Hub(endpoint=server.url, token=WRITER)
        yield HubRemote("hf://Team", self.hub)

    def another(self, remote: Remote) -> Remote:
        return HubRemote(remote.url, self.hub)

    def shown(self, remote: Remote, local: Store, blob: Descriptor) -> None:
        publish(remote, local, "acme/search:0.0.1", [local.read(Digest(blob.digest))])
