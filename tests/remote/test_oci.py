"""OCI registries as remotes: the contract, before a real registry."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from deltareg.remote import Remote
from deltareg.remote.oci_remote import OciRemote
from deltareg.store import Store
from tests.contracts.remote_contract import RemoteContract
from tests.servers.docker_registry import DockerRegistry, serve_docker_registry

_NUMBERS = count()


@pytest.fixture(scope="module")
def registry() -> Iterator[DockerRegistry]:
    with serve_docker_registry() as running:
        yield running


@pytest.fixture(scope="module")
def keeping_registry() -> Iterator[DockerRegistry]:
    """One that deletes nothing."""
    with serve_docker_registry(deletion=False) as running:
        yield running


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "state"))


class TestOciRemote(RemoteContract):
    @pytest.fixture
    def remote(self, registry: DockerRegistry) -> Iterator[Remote]:
        # Each test has a prefix of its own: a registry takes longer to start than a test to run.
        yield OciRemote(f"oci+http://{registry.host}/test-{next(_NUMBERS)}")

    def another(self, remote: Remote) -> Remote:
        return OciRemote(remote.url)


class TestOciRemoteThatDeletesNothing:
    """Only what takes something back is done in another way there."""

    @pytest.fixture
    def remote(self, keeping_registry: DockerRegistry) -> Remote:
        return OciRemote(f"oci+http://{keeping_registry.host}/test-{next(_NUMBERS)}")

    @pytest.fixture
    def local(self, tmp_path: Path) -> Store:
        return Store(tmp_path / "local")

    another = TestOciRemote.another
    test_channel = RemoteContract.test_channel_is_set_moved_and_removed
    test_yank = RemoteContract.test_yanked_version_is_listed_as_such_and_skipped_by_latest
    test_reasons = RemoteContract.test_another_reason_takes_the_place_of_the_first
    test_only_versions = RemoteContract.test_only_versions_that_are_there_are_yanked
