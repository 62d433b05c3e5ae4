"""Publishing: all of a delta is looked at before its version is there, and a version never changes."""

from __future__ import annotations

import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from deltareg.digest import Digest
from deltareg.errors import BadHeader, BadManifest, BadName, DeltaregError, DigestMismatch, NotFound, VersionExists
from deltareg.manifest import DeltaConfig, Manifest, encode, parse
from deltareg.names import parse_reference
from deltareg.store import Store
from deltareg_registry.database.tables import versions
from deltareg_registry.records.publishing import Published, publish
from deltareg_registry.state import State
from tests.deltas import add_delta, with_config
from tests.registry.deltas import OWNER, pack_of, publish_delta, put_blobs
from tests.servers.deltareg_server import RunningServer

NAME = "acme/search:1.0.0"


def published(state: State, name: str, manifest: bytes) -> Published:
    return publish(state.database, state.storage, OWNER, parse_reference(name), manifest)


def names(state: State) -> list[str]:
    with state.database.reading() as connection:
        return [f"{row.namespace}/{row.name}:{row.version}" for row in connection.execute(select(versions))]


def test_published_version_is_described_by_its_config(state: State, local: Store) -> None:
    digest = publish_delta(state, NAME, local)
    with state.database.reading() as connection:
        row = connection.execute(select(versions)).one()
    config = parse(DeltaConfig, local.read(Digest(row.config)), what="test")
    assert (row.digest, row.version, row.publisher) == (digest, "1.0.0", "owner")
    assert (row.fingerprint, row.licence, row.base) == (config.fingerprint.digest, "apache-2.0", config.base.id)


def test_same_bytes_again_change_nothing(state: State, local: Store) -> None:
    manifest = add_delta(local, [pack_of("x")])
    put_blobs(state, NAME, local, manifest)
    assert published(state, NAME, manifest).created
    assert not published(state, NAME, manifest).created
    assert names(state) == [NAME]


def test_version_with_other_bytes_is_refused(state: State, local: Store) -> None:
    publish_delta(state, NAME, local, "first")
    with pytest.raises(VersionExists):
        publish_delta(state, NAME, local, "second")


def test_of_twenty_publishers_one_wins(state: State, local: Store) -> None:
    manifests = [add_delta(local, [pack_of(f"{number}")]) for number in range(20)]
    for manifest in manifests:
        put_blobs(state, NAME, local, manifest)

    def attempt(manifest: bytes) -> bool:
        try:
            return published(state, NAME, manifest).created
        except VersionExists:
            return False

    with ThreadPoolExecutor(20) as pool:
        won = list(pool.map(attempt, manifests))
    assert sum(won) == 1
    assert names(state) == [NAME]


def test_missing_blobs_are_named(state: State, local: Store) -> None:
    manifest = add_delta(local, [pack_of("x")])
    with pytest.raises(NotFound, match="3 of its blobs are missing") as caught:
        publish_delta(state, NAME, local)
        published(state, "acme/other:1.0.0", manifest)
    assert len(caught.value.data["missing"]) == 3  # type: ignore[arg-type]
    assert names(state) == [NAME]


def test_what_is_no_delta_is_refused(state: State, local: Store) -> None:
    good = add_delta(local, [pack_of("x")])
    put_blobs(state, NAME, local, good)
    config = json.loads(local.read(Digest(parse(Manifest, good, what="test").config.digest)))
    unlicensed = with_config(local, json.dumps({key: config[key] for key in config if key != "licence"}).encode())
    manifest = parse(Manifest, good, what="test")
    first = manifest.layers[1].model_copy(update={"size": manifest.layers[1].size + 1})
    longer = encode(manifest.model_copy(update={"layers": [manifest.layers[0], first]}))
    hostile = add_delta(local, [b"\xff" * 64])
    uninventoried = encode(manifest.model_copy(update={"layers": manifest.layers[1:]}))
    cases: list[tuple[bytes, type[DeltaregError], str]] = [
        (b"{", BadManifest, "JSON"),
        (unlicensed, BadManifest, "licence"),
        (longer, DigestMismatch, "bytes, not the"),
        (hostile, BadHeader, "header"),
        (uninventoried, BadManifest, "0 inventories"),
    ]
    for data, error, match in cases:
        if data not in (b"{", longer):
            put_blobs(state, NAME, local, data)
        with pytest.raises(error, match=match):
            published(state, NAME, data)
    with pytest.raises(BadName):
        published(state, "acme/search:prod", good)
    assert names(state) == []


def test_published_over_http_by_who_may(server: RunningServer, local: Store) -> None:
    manifest = add_delta(local, [pack_of("x")])
    put_blobs(server.state, NAME, local, manifest)
    path = "/api/v1/deltas/acme/search/versions/1.0.0"
    reader, publisher = server.user("rita", acme="reader"), server.user("paul", acme="publisher")
    with server.client(anonymous=True) as client:
        assert client.put(path, content=manifest).status_code == 401
    with server.client(reader) as client:
        answer = client.put(path, content=manifest)
        assert (answer.status_code, answer.json()["code"]) == (403, "DR0300")
    with server.client(server.user("someone")) as client:
        assert client.put(path, content=manifest).status_code == 404
    with server.client(publisher) as client:
        assert client.put(path, content=manifest).status_code == 201
        assert client.put(path, content=manifest).status_code == 200
        too_long = client.put(path, content=b" " * (5 << 20))
        assert (too_long.status_code, too_long.json()["code"]) == (422, "DR0403")
    assert names(server.state) == [NAME]


def test_tokens_are_kept_as_digests_only(server: RunningServer) -> None:
    token = server.user("rita")
    with sqlite3.connect(server.state.settings.data / "registry.db") as connection:
        dump = "\n".join(connection.iterdump())
    assert token not in dump and server.token not in dump
