"""An index is searched, not parsed, for the names of one repository; what comes out is what parsing gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltareg.digest import sha256
from deltareg.errors import BadManifest, NotFound
from deltareg.manifest import MANIFEST_TYPE, Descriptor, Index
from deltareg.names import parse_reference
from deltareg.store import Store
from deltareg.store.index import CREATED, REF_NAME, YANKED, Snapshot, checksum_fault, read_index, write_index
from tests.deltas import publish

CHECKSUM = "vnd.deltareg.checksum"


def named(name: str | None, number: int = 0, **more: Any) -> Descriptor:
    annotations = None if name is None else {REF_NAME: name, CREATED: "2026-01-01T00:00:00Z"}
    fields = {"mediaType": MANIFEST_TYPE, "digest": sha256(bytes([number])), "size": number, "annotations": annotations}
    return Descriptor.model_validate(fields | more)


def written(path: Path, index: Index) -> Snapshot:
    write_index(path, index, temporary=path.with_name("temporary"))
    return read_index(path)


def sealed(path: Path, text: str) -> Snapshot:
    """Write an index, of which `CHECKSUM-HERE` becomes the right checksum."""
    digest = sha256(text.replace("CHECKSUM-HERE", "").encode())
    path.write_bytes(text.replace("CHECKSUM-HERE", digest).encode())
    return read_index(path)


def is_parsed(snapshot: Snapshot) -> bool:
    return "index" in vars(snapshot)


repositories = st.sampled_from(["acme/a", "acme/a-b", "acme/a.b", "acme/ab", "b/a", "acme/é", "none"])
tags = st.sampled_from(["1.0.0", "1.0.0-rc.1", "10.0.0", "2.0.0", "prod", "é\n", '"', ""])
names = st.none() | st.builds("{}:{}".format, repositories, tags) | st.text(max_size=8)
extras = st.fixed_dictionaries(
    {},
    optional={
        "annotations": st.fixed_dictionaries({}, optional={REF_NAME: names.map(str), YANKED: st.text(max_size=8)}),
        "Zoo": st.just({"annotations": {REF_NAME: "acme/a:1.0.0"}, "manifests": []}),
        "urls": st.lists(st.text(max_size=8), max_size=2),
        "formatVersion": st.just(7),
        CHECKSUM: st.just(""),
    },
)
descriptors = st.builds(lambda name, number, more: named(name, number, **more), names, st.integers(0, 255), extras)


@given(
    st.lists(descriptors, max_size=30),
    st.fixed_dictionaries({}, optional={"aaa": st.just({"manifests": [], CHECKSUM: ""}), "zzz": st.text(max_size=8)}),
)
def test_names_of_a_repository_are_those_that_parsing_finds(
    tmp_path_factory: pytest.TempPathFactory, manifests: list[Descriptor], more: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("index") / "index.json"
    snapshot = written(path, Index.model_validate({"schemaVersion": 2, "manifests": manifests, **more}))
    plain = json.loads(path.read_bytes())
    expected: dict[str, dict[str, str]] = {}
    for one in plain["manifests"]:
        repository, _, tag = one.get("annotations", {}).get(REF_NAME, "").partition(":")
        expected.setdefault(repository, {})[tag] = one["digest"]
    sound = {"1.0.0", "1.0.0-rc.1", "10.0.0", "2.0.0", "prod"}
    for repository in ["acme/a", "acme/a-b", "acme/a.b", "acme/ab", "b/a", "b/b"]:
        found = {str(entry.reference.tag): entry.digest for entry in snapshot.entries_of(repository)}
        assert found == {tag: digest for tag, digest in expected.get(repository, {}).items() if tag in sound}
        assert found == {str(one.reference.tag): one.digest for one in snapshot.repositories.get(repository, [])}
    for key, value in more.items():
        assert plain[key] == value
    kept = [one.model_dump(by_alias=True, exclude_none=True) for one in manifests]
    assert sorted(map(json.dumps, plain["manifests"])) == sorted(json.dumps(one) for one in kept)
    assert checksum_fault(path) is None


def test_index_is_plain_json_with_a_manifest_on_each_line_in_the_order_of_names(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    written(path, Index(manifests=[named("b/b:1.0.0"), named("b/a:1.0.0"), named("a/c:1.0.0"), named(None)]))
    first, *lines, last = path.read_text().split("\n")
    assert (first[-13:], last[:2]) == ('"manifests":[', "],")
    assert [json.loads(line.rstrip(",")).get("annotations", {}).get(REF_NAME) for line in lines] == [
        None,
        "a/c:1.0.0",
        "b/a:1.0.0",
        "b/b:1.0.0",
    ]
    assert json.loads(path.read_text())["schemaVersion"] == 2


def test_names_of_one_repository_are_had_without_parsing_the_others(tmp_path: Path) -> None:
    snapshot = written(
        tmp_path / "index.json", Index(manifests=[named(f"acme/m-{n}:{v}.0.0") for n in range(50) for v in range(3)])
    )
    assert {str(entry.reference) for entry in snapshot.entries_of("acme/m-7")} == {
        "acme/m-7:0.0.0",
        "acme/m-7:1.0.0",
        "acme/m-7:2.0.0",
    }
    assert snapshot.entries_of("acme/absent") == []
    assert not is_parsed(snapshot)


def test_index_that_another_program_wrote_is_parsed_and_the_next_publish_orders_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    digest = publish(store, "acme/b:1.0.0")
    publish(store, "acme/a:1.0.0", [b"other"])
    plain = json.loads(store.index_path.read_text())
    plain["manifests"].reverse()
    store.index_path.write_text(json.dumps(plain, indent=2))
    assert is_parsed(store.snapshot())
    assert store.resolve(parse_reference("acme/b")) == digest
    publish(store, "acme/c:1.0.0", [b"third"])
    assert store.resolve(parse_reference("acme/b")) == digest
    assert not is_parsed(Store(store.root).snapshot())


@pytest.mark.parametrize("place", ["first", "last", "head", "tail"])
def test_damage_anywhere_is_told_whoever_is_asked_for(tmp_path: Path, place: str) -> None:
    path = tmp_path / "index.json"
    written(path, Index(manifests=[named("acme/a:1.0.0"), named("acme/b:1.0.0"), named("acme/c:1.0.0")]))
    data = bytearray(path.read_bytes())
    at = {
        "first": data.index(b"acme/a") + len(b'acme/a:1.0.0"'),
        "last": data.index(b"acme/c") + len(b'acme/c:1.0.0"'),
        "head": 0,
        "tail": len(data) - 1,
    }[place]
    data[at] ^= 4
    path.write_bytes(data)
    with pytest.raises(BadManifest, match=r"index\.json"):
        read_index(path)


def test_flipped_bit_that_leaves_valid_json_is_no_reason_to_miss_a_name(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    written(path, Index(manifests=[named(f"acme/{name}:1.0.0") for name in "abcdefgh"]))
    path.write_bytes(path.read_bytes().replace(b"acme/d:", b"acme/z:"))
    snapshot = read_index(path)
    assert [str(entry.reference) for entry in snapshot.entries_of("acme/z")] == ["acme/z:1.0.0"]
    assert [str(entry.reference) for entry in snapshot.entries_of("acme/h")] == ["acme/h:1.0.0"]
    assert checksum_fault(path) is not None


@pytest.mark.parametrize(
    "lines",
    ["{", "[]", "", "{},", '{"size":1}', "[" * 100_000, '"' + "x" * 100_000, "1" * 100_000, "\0", '{"a":1,"a":1}'],
    ids=lambda text: text[:12],
)
def test_lines_that_are_no_descriptors_are_refused_though_the_checksum_is_right(tmp_path: Path, lines: str) -> None:
    text = f'{{"annotations":{{"{CHECKSUM}":"CHECKSUM-HERE"}},"manifests":[\n{lines}\n],"schemaVersion":2}}'
    if not lines:
        text = text.replace("[\n\n]", "[\n,\n]")
    snapshot = sealed(tmp_path / "index.json", text)
    with pytest.raises(BadManifest, match=r"index\.json"):
        snapshot.entries_of("acme/a")


def test_names_out_of_order_under_a_right_checksum_end_the_search_and_are_told_by_fsck(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    lines = ",\n".join(named(f"acme/{name}:1.0.0").model_dump_json(exclude_none=True) for name in "hgfedcba")
    text = f'{{"annotations":{{"{CHECKSUM}":"CHECKSUM-HERE"}},"manifests":[\n{lines}\n],"schemaVersion":2}}'
    snapshot = sealed(path, text)
    for name in "abcdefgh":
        assert {str(entry.reference) for entry in snapshot.entries_of(f"acme/{name}")} <= {f"acme/{name}:1.0.0"}
    assert len(snapshot.entries) == 8
    fault = checksum_fault(path)
    assert fault is not None
    assert "out of order" in fault


def test_several_descriptors_on_a_line_do_not_lend_their_names_to_another_repository(tmp_path: Path) -> None:
    lines = ",".join(named(f"acme/{name}:1.0.0").model_dump_json(exclude_none=True) for name in "ab")
    text = f'{{"annotations":{{"{CHECKSUM}":"CHECKSUM-HERE"}},"manifests":[\n{lines}\n],"schemaVersion":2}}'
    snapshot = sealed(tmp_path / "index.json", text)
    assert [str(entry.reference) for entry in snapshot.entries_of("acme/a")] == ["acme/a:1.0.0"]
    assert [str(entry.reference) for entry in snapshot.entries_of("acme/b")] == ["acme/b:1.0.0"]


def test_checksum_elsewhere_than_among_the_annotations_proves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    lines = ",\n".join(named(f"acme/{name}:1.0.0").model_dump_json(exclude_none=True) for name in "ba")
    snapshot = sealed(path, f'{{"manifests":[\n{lines}\n],"schemaVersion":2,"zzz":{{"{CHECKSUM}":"CHECKSUM-HERE"}}}}')
    assert is_parsed(snapshot)
    assert [str(entry.reference) for entry in snapshot.entries_of("acme/b")] == ["acme/b:1.0.0"]


def test_of_a_name_that_occurs_twice_the_last_counts_for_all_who_ask(tmp_path: Path) -> None:
    snapshot = written(tmp_path / "index.json", Index(manifests=[named("acme/a:1.0.0", n) for n in range(3)]))
    (found,) = snapshot.entries_of("acme/a")
    assert found == snapshot.entries["acme/a:1.0.0"]
    assert found.size == 2


def test_index_that_was_emptied_is_read(tmp_path: Path) -> None:
    snapshot = written(tmp_path / "index.json", Index())
    assert snapshot.entries_of("acme/a") == []
    assert snapshot.entries == {}


def test_absent_name_is_told_with_what_there_is(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    publish(store, "acme/a:1.0.0")
    with pytest.raises(NotFound) as caught:
        store.resolve(parse_reference("acme/a:2.0.0"))
    assert caught.value.cause == "acme/a has 1.0.0"
    with pytest.raises(NotFound) as caught:
        store.resolve(parse_reference("acme/b"))
    assert caught.value.cause == "there are acme/a"
