"""Uploads that nobody continued are removed; those that somebody may continue are not."""

from __future__ import annotations

import os
import time

from sqlalchemy import select

from deltareg.digest import sha256
from deltareg_registry.database.tables import uploads
from deltareg_registry.state import State
from deltareg_registry.upkeep.uploads import remove_expired_uploads
from tests.registry.oci.repository import Repository
from tests.servers.deltareg_server import RunningServer


def expired(state: State) -> int:
    found = remove_expired_uploads(state.database, state.storage, state.settings.grace, dry_run=True)
    removed = remove_expired_uploads(state.database, state.storage, state.settings.grace)
    assert found >= removed
    return removed


def test_expired_uploads_are_removed(either: RunningServer, either_repository: Repository) -> None:
    repository, state = either_repository, either.state
    old, new = repository.begin(), repository.begin()
    for place in (old, new):
        repository.client.patch(place, content=b"01234")
    assert expired(state) == 0
    with state.database.writing() as connection:
        where = uploads.c.id == old.rpartition("/")[2]
        connection.execute(uploads.update().where(where).values(updated="2020-01-01T00:00:00.000000Z"))
    assert expired(state) == 1
    assert repository.client.get(old).status_code == 404
    assert state.storage.uploads.identities(time.time() + 60) == [new.rpartition("/")[2]]
    answer = repository.client.put(new, params={"digest": sha256(b"0123456789")}, content=b"56789")
    assert answer.status_code == 201


def test_upload_that_is_being_written_is_left_alone(server: RunningServer, repository: Repository) -> None:
    identity = repository.begin().rpartition("/")[2]
    with server.state.database.writing() as connection:
        connection.execute(uploads.update().values(updated="2020-01-01T00:00:00.000000Z"))
    with server.state.storage.uploads.exclusive(identity):
        assert expired(server.state) == 0
    with server.state.database.reading() as connection:
        assert connection.execute(select(uploads.c.id)).scalars().all() == [identity]
    assert expired(server.state) == 1


def test_bytes_of_no_upload_are_removed_once_they_are_old(server: RunningServer, repository: Repository) -> None:
    repository.client.patch(repository.begin(), content=b"01234")
    root = server.state.storage.root
    assert root is not None
    for name, age in (("0" * 32, 365 * 86400), ("1" * 32, 0)):
        (root / "uploads" / name).write_bytes(b"x")
        os.utime(root / "uploads" / name, (time.time() - age, time.time() - age))
    assert expired(server.state) == 1
    assert sorted(os.listdir(root / "uploads"))[0] == "1" * 32
