"""Many clients of real server processes at once: publishers, readers, and a collector that never rests."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from threading import Barrier

import httpx2
import pytest

from deltareg.catalog import Registry
from deltareg.digest import Digest, sha256
from deltareg.errors import DeltaregError, NotFound, VersionExists
from deltareg.manifest import Manifest, parse
from deltareg.names import Reference, parse_reference
from deltareg.progress import SILENT
from deltareg.remote import Network, Remote, open_remote
from deltareg.transfer import pull, push
from deltareg_registry.app import open_state
from deltareg_registry.database import at
from deltareg_registry.database.tables import blobs, manifests
from deltareg_registry.settings import ServerSettings
from deltareg_registry.state import State
from deltareg_registry.upkeep.collect import CollectReport, collect
from deltareg_registry.upkeep.inspect import InspectReport
from tests.deltas import add_delta
from tests.program import install
from tests.registry.deltas import pack_of
from tests.servers.deltareg_server import ServerProcess, server_process

HOMES = 4
PUBLISHES = 200
PROGRAMS = 3
"""How often the collector is run as a program: starting one takes longer than many publishers' turns."""
RIVALS = 20


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory that lies in memory where it can: nothing is killed here, and what reaches a disk is not asked."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="deltareg-races-", dir=place) as directory:
        yield Path(directory)


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def remote_of(server: ServerProcess, token: str) -> Remote:
    return open_remote(server.url, Network.of({"DELTAREG_TOKEN": token}, [server.url]))


def run(directory: Path, program: str, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program of this checkout to its end."""
    command = [install(directory / "bin") / program, *arguments, "--json"]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables}, timeout=100)


class Collectors:
    """The collector, called with next to no grace and run as a program, again and again beside a server."""

    def __init__(self, data: Path) -> None:
        self.removed = {"called": 0, "run": 0}
        self._data = data
        self._runs = 0
        self._stop = threading.Event()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Collect as long as the body runs. Raises what a collector raised."""
        state = open_state(ServerSettings(data=self._data))
        with closing(state.database), ThreadPoolExecutor(1) as pool:
            running = pool.submit(self._repeat, state)
            try:
                yield
            finally:
                self._stop.set()
            running.result()

    def _repeat(self, state: State) -> None:
        while not self._stop.is_set():
            self._call(state)
            # Something is to be left for the program; and nobody would ever name a blob that is gone before.
            while not self._stop.is_set():
                time.sleep(0.2)
                if self._runs == PROGRAMS:
                    break
                if collect(state.database, state.storage, 0.2, untagged=True, dry_run=True).manifests:
                    self._run(state)
                    break

    def _call(self, state: State) -> None:
        self.removed["called"] += collect(state.database, state.storage, 0.05, untagged=True).blobs

    def _run(self, state: State) -> None:
        # The shortest grace that the program takes is longer than this test.
        recent = at(datetime.now(UTC) - timedelta(seconds=0.2))
        with state.database.writing() as connection:
            for table in (blobs, manifests):
                old = table.update().where(table.c.touched < recent)
                connection.execute(old.values(touched=at(datetime.now(UTC) - timedelta(seconds=61))))
        done = run(self._data.parent, "deltareg-registry", "gc", "--data", self._data, "--grace", "60", "--untagged")
        assert done.returncode == 0, done.stderr
        self._runs += 1
        self.removed["run"] += CollectReport.model_validate_json(done.stdout).blobs


class Publisher:
    """A home from which one version after the other is published; some of them are removed or yanked at once."""

    def __init__(self, home: Path, server: ServerProcess, published: list[tuple[str, Digest]]) -> None:
        self._registry = Registry(home)
        self._server = server
        self._remote = remote_of(server, str(server.token))
        self._published = published
        self._draw = Random(home.name)

    def work(self, number: int) -> None:
        """Publish what falls to one home of several."""
        headers = {"Authorization": f"Bearer {self._server.token}"}
        with httpx2.Client(base_url=self._server.url, headers=headers, timeout=60) as client:
            for turn in range(PUBLISHES // HOMES):
                name = f"acme/delta{self._draw.randrange(6)}"
                reference = parse_reference(f"{name}:{number}.0.{turn}")
                digest = self._publish(reference, turn)
                if turn % 5 == 0:
                    assert client.delete(f"/v2/{name}/manifests/{reference.version}").status_code == 202
                    continue
                if turn % 5 == 1:
                    self._remote.yank(reference, "worse than the last one")
                self._published.append((str(reference), digest))

    def _publish(self, reference: Reference, turn: int) -> Digest:
        # Half of the packs were sent before, by others too, and may have been collected since.
        packs = [f"pack {reference}" if turn % 2 else f"pack {self._draw.randrange(12)}"]
        manifest = add_delta(self._registry.store, [pack_of(pack) for pack in packs], description=str(reference))
        digest = self._registry.store.publish(reference, manifest)
        while True:
            try:
                push(self._registry, reference, self._remote, threads=1)
                return digest
            except NotFound:
                continue  # collected again and again before it was named


def read_along(home: Path, remote: Remote, published: list[tuple[str, Digest]], done: threading.Event) -> int:
    """Pull versions into a home while others are published; how many."""
    registry, count = Registry(home), 0
    while not done.is_set():
        if count < len(published):
            reference, digest = published[count]
            assert pull(registry, f"{reference.partition(':')[0]}@{digest}", remote).digest == digest
            count += 1
        else:
            time.sleep(0.01)
    return count


def check_pulled(home: Path, remote: Remote, published: list[tuple[str, Digest]]) -> None:
    """Pull all of it anew, and look at every byte."""
    registry = Registry(home)
    for reference, digest in published:
        assert pull(registry, reference, remote).digest == digest
    assert registry.store.fsck().ok


@pytest.mark.slow
def test_nothing_is_lost_while_many_publish_and_read_and_the_collector_runs(memory: Path) -> None:
    data, published, done = memory / "server", list[tuple[str, Digest]](), threading.Event()
    with server_process(data, "--gc-every", "0", log=memory / "log") as server, ThreadPoolExecutor(HOMES + 1) as pool:
        remote = remote_of(server, str(server.token))
        headers = {"Authorization": f"Bearer {server.token}"}
        with httpx2.Client(base_url=server.url, headers=headers) as client:
            assert client.post("/api/v1/namespaces", json={"name": "acme"}).status_code == 201
            policy = client.patch("/api/v1/namespaces/acme", json={"policy": {"deletion": True}})
            assert policy.is_success, policy.text
        collectors = Collectors(data)
        with collectors.working():
            reader = pool.submit(read_along, memory / "reader", remote, published, done)
            homes = [Publisher(memory / f"home{number}", server, published) for number in range(HOMES)]
            try:
                list(pool.map(Publisher.work, homes, range(HOMES)))
            finally:
                done.set()
            assert reader.result() > 10
        assert len(published) == PUBLISHES * 4 // 5
        assert all(count > 0 for count in collectors.removed.values()), collectors.removed
        shares = [published[number::HOMES] for number in range(HOMES)]
        list(pool.map(lambda number: check_pulled(memory / f"new{number}", remote, shares[number]), range(HOMES)))
    checked = run(memory, "deltareg-registry", "fsck", "--data", data)
    assert checked.returncode == 0, checked.stdout
    report = InspectReport.model_validate_json(checked.stdout)
    assert (report.versions, report.faults) == (len(published), [])
    assert "Traceback" not in (memory / "log").read_text()


# --- one version, many publishers ---


def test_of_many_who_publish_one_version_at_once_one_wins(
    any_settings: ServerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = [] if any_settings.database is None else ["--database", any_settings.database]
    data, name = any_settings.data, "acme/search:1.0.0"
    reference = parse_reference(name)
    homes = [Registry(tmp_path / f"home{number}") for number in range(RIVALS)]
    manifests = [
        add_delta(home.store, [pack_of("the same for all"), pack_of(f"{number}")]) for number, home in enumerate(homes)
    ]
    start = Barrier(RIVALS)
    with server_process(data, *database) as first, server_process(data, *database, "--drain", "0") as second:
        token = str(first.token)

        def publish(number: int) -> DeltaregError | None:
            remote, store = remote_of((first, second)[number % 2], token), homes[number].store
            homes[number].store.publish(reference, manifests[number])
            for blob in parse(Manifest, manifests[number], what="test").blobs:
                remote.put_blob("acme/search", blob, store.path(Digest(blob.digest)), SILENT)
            start.wait(60)
            try:
                assert remote.put_manifest(reference, manifests[number]) == sha256(manifests[number])
            except DeltaregError as error:
                return error
            return None

        with ThreadPoolExecutor(RIVALS) as pool:
            told = list(pool.map(publish, range(RIVALS)))
        (winner,) = [number for number, error in enumerate(told) if error is None]
        losers = [error for error in told if error is not None]
        assert len(losers) == RIVALS - 1
        assert {(type(error), error.code, error.exit_code) for error in losers} == {(VersionExists, "DR0301", 4)}
        digest = sha256(manifests[winner])
        for server in (first, second):
            report = pull(Registry(tmp_path / f"pulled from {server.url[-5:]}"), name, remote_of(server, token))
            assert report.digest == digest
        # The program tells it in the same way to whoever comes later.
        loser = homes[(winner + 1) % RIVALS].store.root.parent
        late = run(
            tmp_path, "deltareg", "push", name, "--remote", second.url, DELTAREG_TOKEN=token, DELTAREG_HOME=str(loser)
        )
        assert (late.returncode, json.loads(late.stdout)["error"]["code"]) == (4, "DR0301"), late.stderr
