"""The catalog is a cache: always in step with the store, and rebuilt where it is not what it should be."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from deltareg.catalog import Catalog
from deltareg.digest import Digest
from deltareg.names import parse_reference
from deltareg.store import Store
from tests.deltas import add_delta, flip, publish, publish_unread
from tests.disks import fill, read_only, small_disk

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "registry")


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path / "catalog.db")


def listed(catalog: Catalog, store: Store) -> list[str]:
    return [row.reference for row in catalog.rows(store)]


def test_row_tells_what_the_artifact_says_of_itself(store: Store, catalog: Catalog) -> None:
    manifest = add_delta(store, [b"a pack"], description="light fine-tune")
    digest = store.publish(parse_reference("acme/search:1.0.0"), manifest)
    store.set_channel("acme/search", "prod", digest, None)
    for _ in range(2):  # read from the store, then from the database
        (row,) = catalog.rows(store)
        assert row.reference == "acme/search:1.0.0"
        assert row.digest == digest
        assert row.created.endswith("Z")
        assert row.manifest_size == len(manifest)
        assert row.size == len(manifest) + sum(blob.size for blob in store.manifest(digest).blobs)
        assert (row.raw_size, row.parameters, row.base) == (2000, 1000, "hf://acme/base")
        assert (row.licence, row.preset, row.exactness, row.model_type) == ("apache-2.0", "fast", "exact", "bert")
        assert row.description == "light fine-tune"
        assert row.fingerprint is not None
        assert row.fingerprint.startswith("sha256:")
        assert row.channels == ["prod"]
        assert row.fault is None


def test_rows_are_ordered_by_name_and_version(store: Store, catalog: Catalog) -> None:
    for name in ("b/x:1.10.0", "b/x:1.9.0", "b/x:2.0.0-rc.1", "b/x:2.0.0", "a/y:0.1.0"):
        publish(store, name)
    assert listed(catalog, store) == ["a/y:0.1.0", "b/x:1.9.0", "b/x:1.10.0", "b/x:2.0.0-rc.1", "b/x:2.0.0"]
    assert [row.reference for row in catalog.rows(store, "a/y")] == ["a/y:0.1.0"]
    assert catalog.rows(store, "a/z") == []


def test_catalog_follows_the_store(store: Store, catalog: Catalog) -> None:
    assert listed(catalog, store) == []
    first = publish(store, "acme/search:1.0.0")
    assert listed(catalog, store) == ["acme/search:1.0.0"]
    second = publish(Store(store.root), "acme/search:2.0.0", [b"other"])
    store.set_channel("acme/search", "prod", first, None)
    assert [row.channels for row in catalog.rows(store)] == [["prod"], []]
    store.set_channel("acme/search", "prod", second, first)
    assert [row.channels for row in catalog.rows(store)] == [[], ["prod"]]
    store.remove(parse_reference("acme/search:1.0.0"))
    assert listed(catalog, store) == ["acme/search:2.0.0"]


def test_catalog_of_another_store_is_not_believed(store: Store, catalog: Catalog, tmp_path: Path) -> None:
    publish(store, "acme/search:1.0.0")
    assert listed(catalog, store) == ["acme/search:1.0.0"]
    other = Store(tmp_path / "other")
    assert listed(catalog, other) == []


@pytest.mark.parametrize("content", [b"", b"garbage", b"SQLite format 3\0" + b"\xff" * 5000])
def test_garbage_in_the_catalogs_place_is_replaced(store: Store, catalog: Catalog, content: bytes) -> None:
    publish(store, "acme/search:1.0.0")
    listed(catalog, store)
    catalog.path.write_bytes(content)
    assert listed(catalog, store) == ["acme/search:1.0.0"]
    with closing(sqlite3.connect(catalog.path, isolation_level=None)) as connection:
        assert connection.execute("select count(*) from names").fetchone() == (1,)


def test_damaged_pages_are_replaced(store: Store, catalog: Catalog) -> None:
    for number in range(200):
        publish(store, f"acme/search:1.0.{number}")
    assert len(listed(catalog, store)) == 200
    with catalog.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096 * 4)
    assert len(listed(catalog, store)) == 200


def test_deleted_catalog_is_made_again(store: Store, catalog: Catalog) -> None:
    publish(store, "acme/search:1.0.0")
    listed(catalog, store)
    for path in catalog.path.parent.glob("catalog.db*"):
        path.unlink()
    assert listed(catalog, store) == ["acme/search:1.0.0"]
    assert catalog.path.exists()


def test_catalog_of_another_schema_is_made_anew(store: Store, catalog: Catalog) -> None:
    publish(store, "acme/search:1.0.0")
    with closing(sqlite3.connect(catalog.path, isolation_level=None)) as connection:
        connection.execute("create table names (id integer primary key, other text)")
        connection.execute("create table old (x)")
        connection.execute("pragma user_version = 99")
    assert listed(catalog, store) == ["acme/search:1.0.0"]
    with closing(sqlite3.connect(catalog.path, isolation_level=None)) as connection:
        tables = connection.execute("select name from sqlite_master where type = 'table' order by name").fetchall()
    assert [name for (name,) in tables if not name.startswith("words_")] == ["names", "source", "words"]


def test_database_keeps_a_write_ahead_log(store: Store, catalog: Catalog) -> None:
    catalog.rows(store)
    with closing(sqlite3.connect(catalog.path, isolation_level=None)) as connection:
        assert connection.execute("pragma journal_mode").fetchone() == ("wal",)


def test_row_that_was_tampered_with_is_gone_after_reindexing(store: Store, catalog: Catalog) -> None:
    digest = publish(store, "acme/search:1.0.0")
    catalog.rows(store)
    with closing(sqlite3.connect(catalog.path, isolation_level=None)) as connection:
        connection.execute("update names set digest = 'sha256:' || hex(zeroblob(32))")
    assert store.resolve(parse_reference("acme/search:1.0.0")) == digest
    assert catalog.reindex(store) == 1
    assert [row.digest for row in catalog.rows(store)] == [digest]


def test_damaged_delta_is_listed_with_its_fault_until_it_is_mended(store: Store, catalog: Catalog) -> None:
    digest = publish(store, "acme/search:1.0.0")
    publish(store, "acme/other:1.0.0", [b"other"])
    config = store.path(Digest(store.manifest(digest).config.digest))
    flip(config)
    rows = catalog.rows(store)
    assert [row.reference for row in rows] == ["acme/other:1.0.0", "acme/search:1.0.0"]
    assert rows[1].fault is not None
    assert rows[1].base is None
    flip(config)
    assert [row.fault for row in catalog.rows(store)] == [None, None]


def test_artifact_of_another_config_type_is_listed_with_its_fault(store: Store, catalog: Catalog) -> None:
    publish_unread(store, "acme/search:1.0.0", b"{}", "application/x")
    assert "unknown config type" in str(catalog.rows(store)[0].fault)


@pytest.mark.parametrize("begin", ["begin immediate", "begin exclusive"])
def test_database_that_another_program_holds_is_left_alone(store: Store, tmp_path: Path, begin: str) -> None:
    catalog = Catalog(tmp_path / "catalog.db", busy_seconds=0.1)
    publish(store, "acme/search:1.0.0")
    assert listed(catalog, store) == ["acme/search:1.0.0"]
    inode = catalog.path.stat().st_ino
    with closing(sqlite3.connect(catalog.path, isolation_level=None)) as connection:
        connection.execute("pragma locking_mode = exclusive" if begin == "begin exclusive" else "select 1")
        connection.execute(begin)
        publish(store, "acme/search:2.0.0", [b"other"])
        assert listed(catalog, store) == ["acme/search:1.0.0", "acme/search:2.0.0"], "they are read from the store"
        assert catalog.path.stat().st_ino == inode
        connection.execute("rollback")
    assert listed(catalog, store) == ["acme/search:1.0.0", "acme/search:2.0.0"]
    assert catalog.path.stat().st_ino == inode


def test_database_that_is_held_for_a_moment_is_waited_for(store: Store, catalog: Catalog) -> None:
    publish(store, "acme/search:1.0.0")
    listed(catalog, store)
    publish(store, "acme/search:2.0.0", [b"other"])
    with closing(sqlite3.connect(catalog.path, isolation_level=None, check_same_thread=False)) as connection:
        connection.execute("begin immediate")
        timer = threading.Timer(0.3, connection.execute, ["rollback"])
        timer.start()
        assert listed(catalog, store) == ["acme/search:1.0.0", "acme/search:2.0.0"]
        timer.join()
        assert connection.execute("select count(*) from names").fetchone() == (2,)


def test_read_only_home_is_listed_without_the_database(store: Store, catalog: Catalog) -> None:
    publish(store, "acme/search:1.0.0")
    with read_only(store.root.parent):
        assert listed(catalog, store) == ["acme/search:1.0.0"]
        assert [row.reference for row in catalog.rows(store, "acme/search")] == ["acme/search:1.0.0"]
        assert not catalog.path.exists()


def test_full_disk_is_listed_without_the_database(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 256) as disk:
        store, catalog = Store(disk / "registry"), Catalog(disk / "catalog.db")
        publish(store, "acme/search:1.0.0")
        fill(disk)
        assert listed(catalog, store) == ["acme/search:1.0.0"]


def test_many_processes_list_while_others_publish(store: Store, catalog: Catalog) -> None:
    program = """
import sys
from contextlib import closing
from pathlib import Path
from deltareg.catalog import Catalog
from deltareg.store import Store
from tests.deltas import publish
home, own = Path(sys.argv[1]), sys.argv[2]
store, catalog = Store(home / "registry"), Catalog(home / "catalog.db")
for number in range(8):
    publish(store, f"acme/model-{own}:1.0.{number}")
    mine = [row.reference for row in catalog.rows(store, f"acme/model-{own}")]
    assert mine == [f"acme/model-{own}:1.0.{seen}" for seen in range(number + 1)], mine
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(store.root.parent), str(number)], cwd=ROOT)
        for number in range(4)
    ]
    assert [process.wait() for process in processes] == [0] * 4
    assert len(listed(catalog, store)) == 32


def test_catalog_notices_that_a_version_is_yanked(store: Store, catalog: Catalog) -> None:
    reference = parse_reference("acme/search:1.0.0")
    digest = publish(store, "acme/search:1.0.0")
    publish(store, "acme/search:1.1.0", [b"other"])
    store.set_channel("acme/search", "prod", digest, None)
    assert [row.yanked for row in catalog.rows(store)] == [None, None]
    for reason in ("first", "second"):
        Store(store.root).yank(reference, reason)
        for _ in range(2):  # brought into step, then read from the database
            assert [row.yanked for row in catalog.rows(store)] == [reason, None]
        assert [row.channels for row in catalog.rows(store)] == [["prod"], []]
    store.unyank(reference)
    assert [row.yanked for row in catalog.rows(store)] == [None, None]


def test_yanked_and_damaged_version_is_told_as_both(store: Store, catalog: Catalog) -> None:
    digest = publish(store, "acme/search:1.0.0")
    store.yank(parse_reference("acme/search:1.0.0"), "wrong")
    config = store.path(Digest(store.manifest(digest).config.digest))
    flip(config)
    (row,) = catalog.rows(store)
    assert (row.yanked, row.fault is None) == ("wrong", False)
    flip(config)
    (row,) = catalog.rows(store)
    assert (row.yanked, row.fault) == ("wrong", None)


def test_read_only_home_tells_what_is_yanked(store: Store, catalog: Catalog) -> None:
    publish(store, "acme/search:1.0.0")
    store.yank(parse_reference("acme/search:1.0.0"), "wrong")
    with read_only(store.root.parent):
        assert [row.yanked for row in catalog.rows(store)] == ["wrong"]
