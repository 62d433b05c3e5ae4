"""Collection, checks and copies of a registry, beside its work."""

from __future__ import annotations

import json
import random
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deltareg.digest import Digest, sha256
from deltareg.errors import BadManifest, DigestMismatch, InvalidArgument, NotFound, OutputExists
from deltareg.names import parse_reference
from deltareg.store import Store
from deltareg_registry.app import open_state
from deltareg_registry.database.tables import manifests
from deltareg_registry.first import first_token
from deltareg_registry.records.blobs import add_blob
from deltareg_registry.records.index import index_revision
from deltareg_registry.records.namespaces import make_namespace, make_repository
from deltareg_registry.records.publishing import publish
from deltareg_registry.settings import ServerSettings
from deltareg_registry.state import State
from deltareg_registry.upkeep.backup import backup, restore
from deltareg_registry.upkeep.collect import collect
from deltareg_registry.upkeep.inspect import inspect_registry
from tests.deltas import add_delta, flip
from tests.registry.deltas import OWNER, pack_of, publish_delta, put_blobs, store_blob


def file_of(state: State, digest: str) -> Path:
    assert state.storage.root is not None
    return state.storage.root / state.storage.key(Digest(digest))


def stray(state: State, text: str, repository: str = "acme/search") -> Digest:
    """A blob that was sent and never named."""
    reference = parse_reference(repository)
    with state.database.writing() as connection:
        make_namespace(connection, reference.namespace, OWNER, public=False)
        digest = store_blob(state, text.encode())
        add_blob(connection, make_repository(connection, reference.namespace, reference.name), digest, len(text))
    return digest


# --- collection ---


def test_what_nothing_names_is_collected_after_the_grace_period(state: State, local: Store) -> None:
    publish_delta(state, "acme/search:1.0.0", local)
    digest = stray(state, "sent and never named")
    assert collect(state.database, state.storage, 3600).blobs == 0
    time.sleep(0.01)
    tried = collect(state.database, state.storage, 0, dry_run=True)
    assert (tried.blobs, tried.bytes, tried.dry_run) == (1, 20, True)
    assert file_of(state, digest).exists()
    assert collect(state.database, state.storage, 0).blobs == 1
    assert not file_of(state, digest).exists()
    assert inspect_registry(state.database, state.storage).ok


def test_files_of_no_blob_are_collected_once_they_are_old(state: State, local: Store) -> None:
    publish_delta(state, "acme/search:1.0.0", local)
    digest = store_blob(state, b"a process was killed before it told the database")
    assert collect(state.database, state.storage, 3600).orphans == 0
    time.sleep(1.1)  # the files' times are compared, too
    assert collect(state.database, state.storage, 0).orphans == 1
    assert not file_of(state, digest).exists()
    assert inspect_registry(state.database, state.storage).ok


def test_grace_that_is_no_span_of_time_is_refused(state: State) -> None:
    for grace in (-1.0, float("nan"), float("inf"), 1e12):
        with pytest.raises(InvalidArgument):
            collect(state.database, state.storage, grace)


def test_nothing_is_lost_while_collections_and_publishes_go_on(state: State, local: Store) -> None:
    """The grace period is 0 here, which is worse than any real one: every blob is fair game until it is named."""
    stop = threading.Event()
    shared = [pack_of(f"shared {number}") for number in range(4)]
    faults: list[Exception] = []

    def gather() -> None:
        while not stop.is_set():
            try:
                collect(state.database, state.storage, 0)
                # Or nobody would ever name a blob before it is gone.
                time.sleep(0.05)
            except Exception as error:  # told below
                faults.append(error)
                return

    def push(number: int) -> None:
        draw = random.Random(number)
        name = f"acme/delta{number % 5}:1.0.{number}"
        manifest = add_delta(local, [pack_of(f"{number}"), *draw.sample(shared, 2)], description=f"{number}")
        while True:
            put_blobs(state, name, local, manifest)
            try:
                publish(state.database, state.storage, OWNER, parse_reference(name), manifest)
                return
            except NotFound:
                continue  # collected before it was named: the client sends it again

    collectors = [threading.Thread(target=gather) for _ in range(2)]
    for thread in collectors:
        thread.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(push, range(40)))
    stop.set()
    for thread in collectors:
        thread.join()
    assert not faults
    report = inspect_registry(state.database, state.storage)
    assert (report.versions, report.faults) == (40, [])


# --- the check ---


def test_each_kind_of_damage_is_told(state: State, local: Store) -> None:
    digest = publish_delta(state, "acme/search:1.0.0", local)
    damaged, gone, cut = (stray(state, text) for text in ("damaged", "gone", "cut short"))
    flip(file_of(state, damaged))
    file_of(state, gone).unlink()
    file_of(state, cut).write_bytes(b"cut")
    with state.database.writing() as connection:
        connection.exec_driver_sql("update manifests set content = x'00'")
    report = inspect_registry(state.database, state.storage)
    assert {(fault.kind, fault.subject) for fault in report.faults} == {
        ("corrupt", damaged),
        ("missing", gone),
        ("wrong-size", cut),
        ("bad-manifest", digest),
    }
    quick = inspect_registry(state.database, state.storage, read=False)
    assert ("corrupt", damaged) not in {(fault.kind, fault.subject) for fault in quick.faults}


def test_names_that_lead_nowhere_are_told(state: State, local: Store) -> None:
    publish_delta(state, "acme/search:1.0.0", local)
    with state.database.writing() as connection:
        connection.exec_driver_sql("delete from manifests")
    assert [(fault.kind, fault.subject) for fault in inspect_registry(state.database, state.storage).faults] == [
        ("dangling", "acme/search:1.0.0")
    ]


def test_large_manifests_are_held_a_few_at_a_time(state: State, local: Store, tmp_path: Path) -> None:
    publish_delta(state, "acme/search:1.0.0", local)
    with state.database.writing() as connection:
        row = dict(connection.execute(manifests.select()).mappings().one())
        for number in range(24):
            content = bytes([number]) * (3 << 20)
            place = {"digest": sha256(content), "content": content, "size": len(content)}
            connection.execute(manifests.insert().values({**row, **place}))
    for work in (
        lambda: inspect_registry(state.database, state.storage),
        lambda: backup(state.database, state.storage, tmp_path / "copy"),
    ):
        tracemalloc.start()
        work()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 48 << 20
    assert inspect_registry(state.database, state.storage).manifests == 25


# --- copies ---


def test_index_of_a_restored_registry_is_none_that_was_seen_before(state: State, local: Store, tmp_path: Path) -> None:
    publish_delta(state, "acme/search:1.0.0", local, "first")
    backup(state.database, state.storage, tmp_path / "copy")
    seen = set[str]()

    def see(one: State) -> None:
        with one.database.reading() as connection:
            revision = index_revision(connection, OWNER)
        assert revision not in seen
        seen.add(revision)

    see(state)
    for number in range(4):
        publish_delta(state, f"acme/search:1.{number + 1}.0", local, f"{number}")
        see(state)
    for turn in range(2):
        other = open_state(ServerSettings(data=tmp_path / f"restored{turn}"))
        restore(tmp_path / "copy", other.database, other.storage)
        see(other)
        for number in range(4):
            publish_delta(other, f"acme/search:1.{number + 1}.0", local, f"{turn}.{number}")
            see(other)
        other.database.close()


def test_registry_from_a_copy_is_the_same(state: State, local: Store, tmp_path: Path) -> None:
    first = publish_delta(state, "acme/search:1.0.0", local, "first")
    assert backup(state.database, state.storage, tmp_path / "copy").copied == 3
    second = publish_delta(state, "acme/search:1.1.0", local, "second")
    later = backup(state.database, state.storage, tmp_path / "copy")
    assert (later.blobs, later.copied) == (4, 1)
    other = open_state(ServerSettings(data=tmp_path / "restored"))
    restored = restore(tmp_path / "copy", other.database, other.storage)
    assert (restored.copied, restored.rows) == (4, later.rows), "what went out came in"
    assert inspect_registry(other.database, other.storage).model_dump() == {
        **inspect_registry(state.database, state.storage).model_dump()
    }
    with other.database.reading() as connection:
        found = connection.exec_driver_sql("select version, digest from versions order by version").all()
    assert [tuple(row) for row in found] == [("1.0.0", first), ("1.1.0", second)]
    # It goes on where the copied one was.
    publish_delta(other, "acme/search:1.2.0", local, "third")
    assert first_token(other.database) is None
    other.database.close()


def test_copy_is_not_restored_over_a_registry(state: State, local: Store, tmp_path: Path) -> None:
    publish_delta(state, "acme/search:1.0.0", local)
    backup(state.database, state.storage, tmp_path / "copy")
    with pytest.raises(OutputExists):
        restore(tmp_path / "copy", state.database, state.storage)


def test_damaged_copies_are_refused_and_nothing_is_half_restored(state: State, local: Store, tmp_path: Path) -> None:
    publish_delta(state, "acme/search:1.0.0", local)
    copy = tmp_path / "copy"
    backup(state.database, state.storage, copy)
    other = open_state(ServerSettings(data=tmp_path / "restored"))
    with pytest.raises(NotFound):
        restore(tmp_path / "nothing", other.database, other.storage)
    rows = copy / "database.ndjson.zst"
    whole = rows.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", b"no zstd"):
        rows.write_bytes(damage)
        with pytest.raises((BadManifest, NotFound)):
            restore(copy, other.database, other.storage)
    rows.write_bytes(whole)
    blob = next(path for path in (copy / "storage" / "blobs").rglob("*") if path.is_file() and path.stat().st_size)
    flip(blob)
    with pytest.raises(DigestMismatch):
        restore(copy, other.database, other.storage)
    flip(blob)
    with other.database.reading() as connection:
        assert connection.exec_driver_sql("select count(*) from namespaces").scalar() == 0
    restore(copy, other.database, other.storage)
    assert inspect_registry(other.database, other.storage).ok
    other.database.close()


def test_secrets_in_a_copy_are_for_its_owner_alone(state: State, tmp_path: Path) -> None:
    backup(state.database, state.storage, tmp_path / "copy")
    assert (tmp_path / "copy" / "database.ndjson.zst").stat().st_mode & 0o077 == 0


def test_reports_are_documents(state: State, local: Store) -> None:
    publish_delta(state, "acme/search:1.0.0", local)
    report = inspect_registry(state.database, state.storage)
    assert json.loads(report.model_dump_json(by_alias=True))["versions"] == 1
