"""The embedded registry: a home with a store and a catalog."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import deltareg
from deltareg.catalog import Registry
from deltareg.errors import BadName, InvalidArgument, NotFound, VersionExists
from deltareg.store import Store
from tests.deltas import add_delta, flip, publish

ROOT = Path(__file__).resolve().parents[2]


def test_registry_publishes_resolves_and_lists(tmp_path: Path) -> None:
    registry = deltareg.Registry(tmp_path / "home")
    digest = registry.publish("acme/search:1.0.0", add_delta(registry.store))
    assert registry.resolve("acme/search") == digest
    assert [row.reference for row in registry.list()] == ["acme/search:1.0.0"]
    assert [row.reference for row in registry.list("acme/search")] == ["acme/search:1.0.0"]
    assert registry.artifact("acme/search:1.0.0").digest == digest
    assert registry.artifact("acme/search:1.0.0").config.preset == "fast"
    with pytest.raises(VersionExists):
        registry.publish("acme/search:1.0.0", add_delta(registry.store, [b"other"]))


def test_home_holds_an_oci_layout_and_the_catalog(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "home")
    registry.list()
    assert sorted(path.name for path in registry.home.iterdir() if "catalog.db-" not in path.name) == [
        "catalog.db",
        "catalog.db.lock",
        "registry",
    ]
    assert Store(tmp_path / "home" / "registry", create=False).entries() == []


def test_registry_that_must_exist_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no registry") as caught:
        Registry(tmp_path / "home", create=False)
    assert "DELTAREG_HOME" in str(caught.value.hint)
    assert not (tmp_path / "home").exists()
    Registry(tmp_path / "home")
    Registry(tmp_path / "home", create=False)


@pytest.mark.parametrize("create", [True, False])
def test_file_is_no_home(tmp_path: Path, create: bool) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(InvalidArgument, match="home is no directory") as caught:
        Registry(tmp_path / "home", create=create)
    assert "DELTAREG_HOME" in str(caught.value.hint)


def test_unknown_repository_is_not_found(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    with pytest.raises(NotFound, match="acme/search"):
        registry.list("acme/search")
    with pytest.raises(BadName):
        registry.list("search")


def test_home_is_the_variable_or_the_platforms_place(tmp_path: Path) -> None:
    program = "from deltareg.catalog import default_home; print(default_home())"

    def home(**variables: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=variables, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert home(DELTAREG_HOME="/srv/deltas", HOME=str(tmp_path)) == "/srv/deltas"
    assert home(HOME=str(tmp_path)).startswith(str(tmp_path))
    assert home(DELTAREG_HOME="", HOME=str(tmp_path)).endswith("deltareg")


def test_reindex_gc_and_fsck_reach_the_store(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    digest = publish(registry.store, "acme/search:1.0.0")
    registry.store.put(b"unneeded")
    assert registry.reindex() == 1
    assert registry.gc().blobs == 0
    assert registry.gc(-60, dry_run=True).blobs == 1
    assert registry.fsck().ok
    flip(registry.store.path(digest))
    assert [fault.kind for fault in registry.fsck().faults] == ["corrupt"]


def test_registry_loads_no_database_before_it_lists(tmp_path: Path) -> None:
    program = """
import sys
from deltareg import Registry
registry = Registry(sys.argv[1])
assert "sqlite_utils" not in sys.modules
registry.list()
assert "sqlite_utils" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=True)


def test_home_of_nobody_is_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgument, match="nobody's home"):
        Registry("~nosuch-user/home")
    monkeypatch.setenv("DELTAREG_HOME", "~nosuch-user/home")
    with pytest.raises(InvalidArgument, match="nobody's home"):
        Registry()
