"""Search finds what fits, from the catalog, whatever is typed and whatever befell the database."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from deltareg.catalog import Registry
from deltareg.digest import Digest, sha256
from deltareg.errors import InvalidArgument
from deltareg.manifest import CONFIG_TYPE, DeltaConfig, Fingerprint, Manifest, TokenizerFingerprint, encode, parse
from deltareg.names import parse_reference
from tests.deltas import add_delta, flip, publish, with_config
from tests.disks import read_only

ROOT = Path(__file__).resolve().parents[2]


def tokenizer(core: str = "core", added: str = "added") -> TokenizerFingerprint:
    return TokenizerFingerprint(core=sha256(core.encode()), added=sha256(added.encode()), kind="bpe", rows=10)


def fingerprint(
    digest: str = "own", space: str = "space", told: TokenizerFingerprint | None = None, model_type: str = "llama"
) -> Fingerprint:
    return Fingerprint(
        digest=sha256(digest.encode()),
        space=sha256(space.encode()),
        inventory=sha256(b"inventory"),
        model_type=model_type,
        tokenizer=told,
    )


def put(registry: Registry, name: str, found: Fingerprint, *, licence: str = "mit", description: str = "") -> Digest:
    store = registry.store
    manifest = parse(Manifest, add_delta(store), what="test")
    config = parse(DeltaConfig, store.read(Digest(manifest.config.digest)), what="test")
    changed = config.model_copy(update={"fingerprint": found, "licence": licence, "description": description or None})
    return store.publish(parse_reference(name), with_config(store, encode(changed), CONFIG_TYPE))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Six deltas, of which five lie in one space."""
    registry = Registry(tmp_path / "home")
    put(registry, "acme/same:1.0.0", fingerprint(told=tokenizer()), description="französischer Chat")
    put(registry, "acme/added:1.0.0", fingerprint(told=tokenizer(added="more")), licence="Apache-2.0")
    put(registry, "acme/silent:1.0.0", fingerprint())
    put(registry, "acme/foreign:1.0.0", fingerprint(told=tokenizer("other")), description="chat of lawyers")
    put(registry, "beta/padded:1.0.0", fingerprint("padded", told=tokenizer()))
    put(registry, "beta/else:1.0.0", fingerprint("else", "else", tokenizer(), model_type="bert"))
    return registry


def names(registry: Registry, text: str | None = None, **given: str) -> set[str]:
    report = registry.search(text, **given)  # type: ignore[arg-type]
    assert report.total == len(report.results)
    return {row.reference.partition(":")[0] for row in report.results}


def fits(registry: Registry, target: Fingerprint) -> dict[str, str | None]:
    report = registry.search(target=target)
    order = [str(row.fit) for row in report.results]
    assert order == sorted(order, key=["identical", "homologous", "adaptable"].index)
    return {row.reference.partition(":")[0]: row.fit for row in report.results}


def test_fit_follows_from_fingerprint_and_tokenizer(registry: Registry) -> None:
    assert fits(registry, fingerprint(told=tokenizer())) == {
        "acme/same": "identical",
        "acme/added": "homologous",
        "acme/silent": "homologous",
        "acme/foreign": "adaptable",
        "beta/padded": "adaptable",
    }
    assert fits(registry, fingerprint()) == {
        "acme/same": "homologous",
        "acme/added": "homologous",
        "acme/silent": "homologous",
        "acme/foreign": "homologous",
        "beta/padded": "adaptable",
    }
    assert fits(registry, fingerprint("no", "such")) == {}


def test_each_filter_and_all_together(registry: Registry) -> None:
    assert len(names(registry)) == 6
    assert names(registry, licence="apache-2.0") == {"acme/added"}
    assert names(registry, namespace="beta") == {"beta/padded", "beta/else"}
    assert names(registry, model_type="bert") == {"beta/else"}
    assert names(registry, namespace="beta", model_type="llama", licence="MIT") == {"beta/padded"}
    assert names(registry, "chat", namespace="beta") == set()
    report = registry.search("chat", target=fingerprint(told=tokenizer()), licence="mit")
    assert [(row.reference, row.fit) for row in report.results] == [
        ("acme/same:1.0.0", "identical"),
        ("acme/foreign:1.0.0", "adaptable"),
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("CHAT", {"acme/same", "acme/foreign"}),
        ("franz chat", {"acme/same"}),
        ("law", {"acme/foreign"}),
        ("acme/sil", {"acme/silent"}),
        ("bert", {"beta/else"}),
        ("chat bert", set[str]()),
        ("every", set[str]()),
    ],
)
def test_text_is_the_beginnings_of_words(registry: Registry, text: str, found: set[str]) -> None:
    assert names(registry, text) == found


@pytest.mark.parametrize(
    "text",
    [
        '"',
        'chat"',
        "chat' OR 1=1 --",
        "*",
        "NEAR(",
        "NEAR(chat lawyers, 2) xyz",
        "keys:every",
        "{reference}:acme",
        "-xyz ^ + : ( )",
        "chat\0lawyers",
        "🚀",
        "\ud800",
        "x" * 10_000,
        "%",
    ],
)
def test_hostile_text_is_only_text(registry: Registry, text: str) -> None:
    assert names(registry, text) <= {"acme/same", "acme/foreign"}
    assert names(registry, licence=text, namespace=text, model_type=text) == set()
    assert len(names(registry)) == 6


def test_operators_are_words(registry: Registry) -> None:
    assert names(registry, "chat OR bert") == set()
    assert names(registry, "chat\0lawyers") == {"acme/foreign"}
    assert len(names(registry, " \t\0")) == 6


def test_too_many_words_and_bad_limits_are_refused(registry: Registry) -> None:
    with pytest.raises(InvalidArgument, match="5000 words"):
        registry.search(" ".join(f"w{number}" for number in range(5000)))
    assert names(registry, "chat " * 2000) == {"acme/same", "acme/foreign"}
    for limit in (0, -1, 2**31):
        with pytest.raises(InvalidArgument, match="limit"):
            registry.search(limit=limit)


def test_limit_cuts_the_best_and_newest_first_and_total_counts_all(registry: Registry) -> None:
    report = registry.search(target=fingerprint(told=tokenizer()), limit=2)
    assert [row.fit for row in report.results] == ["identical", "homologous"]
    assert report.total == 5
    put(registry, "acme/newest:1.0.0", fingerprint("newest"))
    assert registry.search(limit=1).results[0].reference == "acme/newest:1.0.0"


def test_empty_registry(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "home")
    assert registry.search("chat").results == []
    assert registry.search(target=fingerprint()).total == 0


def test_search_follows_the_store_and_leaves_channels_and_faults_out(registry: Registry) -> None:
    assert len(names(registry)) == 6
    store = registry.store
    digest = store.resolve(parse_reference("acme/same:1.0.0"))
    store.set_channel("acme/same", "prod", digest, None)
    assert len(names(registry)) == 6
    store.remove(parse_reference("acme/foreign:1.0.0"))
    assert names(registry, "chat") == {"acme/same"}
    other = publish(store, "acme/broken:1.0.0")
    config = store.path(Digest(store.manifest(other).config.digest))
    flip(config)
    assert "acme/broken" not in names(registry)
    flip(config)
    for _ in range(2):
        assert "acme/broken" in names(registry)


def test_yanked_versions_are_left_out_unless_they_are_asked_for(registry: Registry) -> None:
    put(registry, "acme/same:1.1.0", fingerprint("renewed", told=tokenizer()), description="französischer Chat")
    target = fingerprint(told=tokenizer())
    before = [row.reference for row in registry.search(limit=20).results]
    registry.store.yank(parse_reference("acme/same:1.0.0"), "forgets")
    for _ in range(2):  # brought into step, then read from the database
        left = registry.search()
        assert [row.reference for row in left.results] == [name for name in before if name != "acme/same:1.0.0"]
        assert left.total == 6
        assert registry.search("chat", target=target).total == 2
        report = registry.search("chat", target=target, yanked=True)
        assert [(row.reference, row.yanked) for row in report.results] == [
            ("acme/same:1.0.0", "forgets"),
            ("acme/same:1.1.0", None),
            ("acme/foreign:1.0.0", None),
        ]
    registry.store.unyank(parse_reference("acme/same:1.0.0"))
    assert [row.reference for row in registry.search().results] == before, "its age stays"
    with read_only(registry.home):
        assert registry.search("yanked").total == 0


def test_replaced_name_leaves_no_words_behind(registry: Registry) -> None:
    assert len(names(registry)) == 6
    with closing(sqlite3.connect(registry.catalog.path, isolation_level=None)) as connection:
        connection.execute("update names set digest = 'sha256:' || hex(zeroblob(32)), keys = keys")
        connection.execute("update source set signature = 'other'")
    assert names(registry, "chat") == {"acme/same", "acme/foreign"}
    with closing(sqlite3.connect(registry.catalog.path, isolation_level=None)) as connection:
        connection.execute("insert into words (words) values ('integrity-check')")


@pytest.mark.parametrize("content", [b"", b"garbage", b"SQLite format 3\0" + b"\xff" * 5000])
def test_damaged_catalog_is_replaced(registry: Registry, content: bytes) -> None:
    registry.search()
    for path in registry.home.glob("catalog.db-*"):
        path.unlink()
    registry.catalog.path.write_bytes(content)
    assert names(registry, "chat") == {"acme/same", "acme/foreign"}
    registry.catalog.path.unlink()
    assert names(registry, "chat") == {"acme/same", "acme/foreign"}


def test_lost_index_of_words_is_made_again(registry: Registry) -> None:
    registry.search()
    with closing(sqlite3.connect(registry.catalog.path, isolation_level=None)) as connection:
        connection.execute("drop table words")
    assert names(registry, "chat") == {"acme/same", "acme/foreign"}


def test_read_only_home_is_searched_without_the_database(registry: Registry) -> None:
    with read_only(registry.home):
        assert names(registry, "chat") == {"acme/same", "acme/foreign"}
        assert fits(registry, fingerprint(told=tokenizer()))["acme/same"] == "identical"
        assert not registry.catalog.path.exists()


def test_database_that_another_program_holds_is_left_alone(registry: Registry) -> None:
    registry.search()
    put(registry, "acme/late:1.0.0", fingerprint(), description="chat")
    quick = type(registry.catalog)(registry.catalog.path, busy_seconds=0.1)
    registry.catalog = quick
    with closing(sqlite3.connect(quick.path, isolation_level=None)) as connection:
        connection.execute("begin immediate")
        assert names(registry, "chat") == {"acme/same", "acme/foreign", "acme/late"}
        connection.execute("rollback")


def test_search_in_step_loads_no_sqlite_utils(registry: Registry) -> None:
    registry.search()
    program = """
import sys
from deltareg import Registry
assert Registry(sys.argv[1]).search("chat").total == 2
assert not {"sqlite_utils", "numpy", "torch"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", program, str(registry.home)], cwd=ROOT, check=True)


def test_two_processes_search_while_they_publish(registry: Registry) -> None:
    program = """
import sys
from deltareg import Registry
from tests.deltas import publish
registry, own = Registry(sys.argv[1]), sys.argv[2]
for number in range(6):
    publish(registry.store, f"{own}/model:1.0.{number}")
    assert registry.search("model", namespace=own).total == number + 1
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(registry.home), own], cwd=ROOT) for own in ("one", "two")
    ]
    assert [process.wait() for process in processes] == [0, 0]
    assert registry.search("model").total == 12
