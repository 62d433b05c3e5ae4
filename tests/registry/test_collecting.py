"""The collector meets an upload at the worst moment: its bytes are in place, and no row tells of them yet."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import event

from deltareg.digest import Digest, sha256
from deltareg_registry.database.tables import CONDEMNED, blobs
from deltareg_registry.records.tags import put_tag
from deltareg_registry.settings import ServerSettings
from deltareg_registry.storage import Storage
from deltareg_registry.storage.uploads import Progress, Uploads
from deltareg_registry.upkeep.backup import backup
from deltareg_registry.upkeep.collect import collect
from deltareg_registry.upkeep.inspect import inspect_registry
from tests.registry.deltas import store_blob
from tests.registry.oci.repository import Repository, code_of
from tests.servers.deltareg_server import RunningServer, running_server

DATA = b"sent before, named by nothing"
DIGEST = sha256(DATA)
HOUR = 3600.0


class Halted:
    """The uploads of a storage, in which one that ends waits after its bytes are in place, once."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads
        self.placed = threading.Event()
        self.go_on = threading.Event()

    def __getattr__(self, name: str) -> object:
        return getattr(self._uploads, name)

    def finish(self, identity: str, progress: Progress, digest: Digest) -> None:
        self._uploads.finish(identity, progress, digest)
        self.placed.set()
        assert self.go_on.wait(20)


class Watched(Storage):
    """A storage that tells when files were listed, and when some are about to be removed."""

    def __init__(
        self, storage: Storage, listing: Callable[[], object] = int, removing: Callable[[], object] = int
    ) -> None:
        super().__init__(storage.store, storage.bucket, storage.root)
        self._listing = listing
        self._removing = removing

    def listed(self, *, before: datetime | None = None) -> Iterator[list[Digest]]:
        for some in super().listed(before=before):
            self._listing()
            yield some

    def delete(self, digests: Sequence[Digest]) -> None:
        if DIGEST in digests:
            self._removing()
        super().delete(digests)


@pytest.fixture
def server(any_settings: ServerSettings) -> Iterator[RunningServer]:
    """A server, once with each database."""
    with running_server(any_settings.data, any_settings) as running:
        yield running


@contextmanager
def ending(server: RunningServer) -> Iterator[tuple[Halted, Callable[[], Future[httpx2.Response]]]]:
    """An upload that can be begun, and halts before its row is written."""
    halted = Halted(server.state.storage.uploads)
    kept, server.state.storage.uploads = server.state.storage.uploads, halted  # type: ignore[assignment]
    with ThreadPoolExecutor(1) as pool, server.client() as client:
        repository = Repository(client, "acme/search")
        place = repository.begin()
        try:
            yield halted, lambda: pool.submit(client.put, place, params={"digest": DIGEST}, content=DATA)
        finally:
            halted.go_on.set()
            server.state.storage.uploads = kept


def check_told_the_truth(server: RunningServer, answer: httpx2.Response) -> None:
    """A blob whose upload was accepted is there; else the client was told to send it again, which helps."""
    assert inspect_registry(server.state.database, server.state.storage).faults == []
    with server.client() as client:
        repository = Repository(client, "acme/search")
        if answer.status_code != 201:
            assert code_of(answer) == (404, "BLOB_UPLOAD_UNKNOWN")
            assert answer.json()["errors"][0]["detail"]["hint"] == "send it again"
            assert code_of(repository.blob(DIGEST)) == (404, "BLOB_UNKNOWN")
            repository.push(DATA)
        assert repository.blob(DIGEST).content == DATA


def grow_old(server: RunningServer) -> None:
    """Let the blob's file be of the day before yesterday."""
    path = server.state.storage.path(DIGEST)
    assert path is not None
    then = time.time() - 48 * HOUR
    os.utime(path, (then, then))


class Killed(BaseException):
    """What a collector is met by that is killed: nothing of it runs after that."""


def test_collector_that_is_killed_before_its_end_leaves_no_blob_without_bytes(server: RunningServer) -> None:
    state = server.state
    with server.client() as client:
        repository = Repository(client, "acme/search")
        repository.push(DATA)
        time.sleep(0.01)

        class Dying(Storage):
            def delete(self, digests: Sequence[Digest]) -> None:
                super().delete(digests)
                raise Killed

        with pytest.raises(Killed):
            collect(state.database, Dying(state.storage.store, state.storage.bucket, state.storage.root), 0)
        missing = client.post("/api/v1/deltas/acme/search/missing", json={"digests": [DIGEST]})
        assert missing.json() == {"missing": [DIGEST]}
        assert repository.blob(DIGEST).status_code == 404
        mount = {"mount": DIGEST, "from": "acme/search"}
        assert client.post("/v2/beta/other/blobs/uploads/", params=mount).status_code == 202
        assert inspect_registry(state.database, state.storage).faults == []
        backup(state.database, state.storage, state.settings.data.parent / "copy")
        repository.push(DATA)
        assert repository.blob(DIGEST).content == DATA
        with pytest.raises(Killed):
            time.sleep(0.01)
            collect(state.database, Dying(state.storage.store, state.storage.bucket, state.storage.root), 0)
        assert collect(state.database, state.storage, HOUR).blobs == 1, "the next one goes on there"
    with state.database.reading() as connection:
        assert connection.execute(blobs.select()).all() == []


def test_manifest_that_gets_a_tag_while_it_is_collected_stays(database: str, tmp_path: Path) -> None:
    """The tag is put after the collector has looked, and before it holds the repository: SQLite has one writer."""
    settings = ServerSettings(data=tmp_path / "server", database=database)
    with running_server(settings.data, settings) as server, server.client() as client:
        state, repository, tagged = server.state, Repository(client, "acme/search"), list[str]()
        digest = repository.push_image("draft")
        assert repository.delete("manifests/draft").status_code == 202

        def tag(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
            holds = "FROM repositories" in statement and "FOR UPDATE" in statement
            if not tagged and (holds or statement.startswith("DELETE FROM manifest")):
                tagged.append(statement)
                with state.database.writing() as connection:
                    put_tag(connection, 1, "prod", digest)

        event.listen(state.database.engine, "before_cursor_execute", tag)
        assert collect(state.database, state.storage, 0, untagged=True).manifests == 0
        assert tagged and repository.manifest("prod").status_code == 200
    assert inspect_registry(state.database, state.storage).faults == []


@pytest.mark.parametrize("grace", [0.0, 0.05])
def test_bytes_that_take_longer_than_the_grace_period_are_sent_again(server: RunningServer, grace: float) -> None:
    with server.client() as client:
        Repository(client, "acme/search").push(DATA)
    with ending(server) as (halted, end):
        answer = end()
        assert halted.placed.wait(20)
        time.sleep(grace + 0.01)
        assert collect(server.state.database, server.state.storage, grace).blobs == 1
        halted.go_on.set()
        assert answer.result(20).status_code == 404
    check_told_the_truth(server, answer.result())


def test_row_is_not_written_while_the_collector_removes_the_bytes(server: RunningServer) -> None:
    with server.client() as client:
        Repository(client, "acme/search").push(DATA)
    with ending(server) as (halted, end):
        answer = end()
        assert halted.placed.wait(20)
        time.sleep(0.01)

        def removing() -> None:
            halted.go_on.set()
            wait([answer], 0.5)

        storage = Watched(server.state.storage, removing=removing)
        assert collect(server.state.database, storage, 0).blobs == 1
        answer.result(20)
    check_told_the_truth(server, answer.result())


def test_blob_sent_anew_where_an_old_file_lay_is_not_taken_for_that_file(server: RunningServer) -> None:
    """With the longest grace period, too: the file was old when it was listed, and is new when it is removed."""
    store_blob(server.state, DATA)
    grow_old(server)
    with ending(server) as (halted, end):
        answers: list[Future[httpx2.Response]] = []

        def listing() -> None:
            answers.append(end())
            assert halted.placed.wait(20)

        collect(server.state.database, Watched(server.state.storage, listing), HOUR)
        halted.go_on.set()
        answers[0].result(20)
    check_told_the_truth(server, answers[0].result())


def test_row_is_not_written_while_an_old_file_is_removed(server: RunningServer) -> None:
    store_blob(server.state, DATA)
    grow_old(server)
    with ending(server) as (halted, end):
        answers: list[Future[httpx2.Response]] = []

        def removing() -> None:
            answers.append(end())
            # On SQLite it waits even for its first row.
            halted.placed.wait(0.5)
            halted.go_on.set()
            wait(answers, 0.5)

        collect(server.state.database, Watched(server.state.storage, removing=removing), HOUR)
        answers[0].result(20)
    check_told_the_truth(server, answers[0].result())
    with server.state.database.reading() as connection:
        assert connection.execute(blobs.select()).one().size == len(DATA)


def test_condemned_blob_that_is_sent_again_is_no_more_the_collectors(server: RunningServer) -> None:
    state = server.state
    with server.client() as client:
        Repository(client, "acme/search").push(DATA)
        with state.database.writing() as connection:
            connection.execute(blobs.update().where(blobs.c.digest == DIGEST).values(touched=CONDEMNED))
        with ending(server) as (halted, begin):
            answer = begin()
            assert halted.placed.wait(20)
            collect(state.database, state.storage, HOUR)
            halted.go_on.set()
            assert answer.result(20).status_code == 201
        assert Repository(client, "acme/search").blob(DIGEST).content == DATA
        assert inspect_registry(state.database, state.storage).faults == []
