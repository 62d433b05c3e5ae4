"""Manifests: versions never change, other names move, what a manifest needs is there, and deletion has its rules."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from deltareg.digest import Digest, sha256
from deltareg.manifest import INDEX_TYPE, MANIFEST_TYPE, Manifest, parse
from deltareg.store import Store
from deltareg_registry.database.tables import audit, namespaces, removed, versions
from tests.deltas import add_delta
from tests.registry.deltas import pack_of
from tests.registry.oci.repository import EMPTY_TYPE, Repository, code_of, described
from tests.servers.deltareg_server import RunningServer


@pytest.fixture
def delta(local: Store) -> bytes:
    return add_delta(local, [pack_of("x")])


def document(**fields: object) -> bytes:
    """A manifest of nothing, with some fields changed."""
    whole = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": described(b"{}", EMPTY_TYPE),
        "layers": [],
        **fields,
    }
    return json.dumps({key: value for key, value in whole.items() if value is not None}).encode()


def allow_deletion(server: RunningServer) -> None:
    with server.state.database.writing() as connection:
        connection.execute(namespaces.update().values(policy={"deletion": True}))


def actions(server: RunningServer) -> list[tuple[str, str, Mapping[str, object]]]:
    with server.state.database.reading() as connection:
        rows = connection.execute(select(audit).order_by(audit.c.id))
        return [(row.action, row.subject, row.detail) for row in rows if not row.action.startswith(("user", "name"))]


def test_pushed_manifest_is_pulled_byte_for_byte(either_repository: Repository) -> None:
    repository = either_repository
    repository.push(b"{}")
    data = json.dumps(json.loads(document()), indent=7).encode() + b"\n"
    digest = sha256(data)
    answer = repository.put("draft", data)
    assert (answer.status_code, answer.headers["location"]) == (201, f"{repository.path}/manifests/{digest}")
    assert answer.headers["docker-content-digest"] == digest
    for reference in ("draft", digest):
        found = repository.manifest(reference)
        assert (found.status_code, found.content) == (200, data)
        assert found.headers["content-type"] == MANIFEST_TYPE
        assert found.headers["docker-content-digest"] == digest
        head = repository.client.head(f"{repository.path}/manifests/{reference}")
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(data)))
        assert head.headers["docker-content-digest"] == digest
    etag = {"If-None-Match": f'"{digest}"'}
    assert repository.client.get(f"{repository.path}/manifests/draft", headers=etag).status_code == 304


def test_manifest_that_is_absent_is_answered_by_404(repository: Repository) -> None:
    assert code_of(repository.manifest("draft")) == (404, "NAME_UNKNOWN")
    repository.push(b"x")
    for reference in ("draft", "1.0.0", "latest", "sha256:" + "0" * 64, "-bad", "x" * 129):
        assert code_of(repository.manifest(reference)) == (404, "MANIFEST_UNKNOWN"), reference
    assert code_of(repository.manifest("sha256:abc")) == (400, "DIGEST_INVALID")


def test_manifest_is_given_only_to_who_takes_its_type(repository: Repository) -> None:
    repository.push_image("draft")
    for accept in (MANIFEST_TYPE, f"{INDEX_TYPE}, {MANIFEST_TYPE};q=0.5", "*/*", "application/json"):
        assert repository.manifest("draft", accept).status_code == 200
    assert code_of(repository.manifest("draft", INDEX_TYPE)) == (404, "MANIFEST_UNKNOWN")


def test_delta_under_a_version_is_published_and_never_changes(
    server: RunningServer, repository: Repository, local: Store, delta: bytes
) -> None:
    assert repository.push_delta(local, delta, "1.0.0").status_code == 201
    assert repository.put("1.0.0", delta).status_code == 201
    with server.state.database.reading() as connection:
        assert connection.execute(select(versions.c.digest)).scalar_one() == sha256(delta)
    other = add_delta(local, [pack_of("y")])
    answer = repository.push_delta(local, other, "1.0.0")
    assert code_of(answer) == (409, "DENIED")
    assert answer.json()["errors"][0]["detail"]["code"] == "DR0301"
    repository.push_image()
    assert code_of(repository.put("1.0.0", document())) == (409, "DENIED")
    assert repository.manifest("1.0.0").content == delta


def test_any_manifest_under_a_version_never_changes(repository: Repository, local: Store, delta: bytes) -> None:
    first = repository.push_image("1.0.0", layers=[b"first"])
    assert repository.push_image("1.0.0", layers=[b"first"]) == first
    repository.push(b"second")
    assert code_of(repository.put("1.0.0", document(layers=[described(b"second")]))) == (409, "DENIED")
    assert code_of(repository.push_delta(local, delta, "1.0.0")) == (409, "DENIED")
    assert repository.manifest("1.0.0").headers["docker-content-digest"] == first


def test_of_eight_publishers_one_wins(server: RunningServer, repository: Repository, local: Store) -> None:
    manifests = [add_delta(local, [pack_of(f"{number}")]) for number in range(8)]
    for manifest in manifests:
        assert repository.push_delta(local, manifest, sha256(manifest)).status_code == 201

    def put(manifest: bytes) -> int:
        with server.client() as client:
            return Repository(client, repository.name).put("1.0.0", manifest).status_code

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(put, manifests)) == [201] + 7 * [409]


def test_channel_names_a_delta_that_is_a_version(
    server: RunningServer, repository: Repository, local: Store, delta: bytes
) -> None:
    other = add_delta(local, [pack_of("y")])
    assert code_of(repository.push_delta(local, delta, "prod")) == (400, "MANIFEST_INVALID")
    assert code_of(repository.put("latest", delta)) == (400, "MANIFEST_INVALID")
    for version, manifest in (("1.0.0", delta), ("2.0.0", other), ("3.0.0-rc.1", delta)):
        assert repository.push_delta(local, manifest, version).status_code == 201
    assert repository.put("prod", delta).status_code == 201
    assert repository.put("prod", other).status_code == 201
    assert repository.manifest("prod").content == other
    assert code_of(repository.put("Not_A.Channel", delta)) == (400, "MANIFEST_INVALID")
    assert [action for action in actions(server) if action[0] == "tag.set"] == [
        ("tag.set", "acme/search:prod", {"from": None, "to": sha256(delta)}),
        ("tag.set", "acme/search:prod", {"from": sha256(delta), "to": sha256(other)}),
    ]


def test_latest_is_computed_from_versions(
    server: RunningServer, repository: Repository, local: Store, delta: bytes
) -> None:
    other = add_delta(local, [pack_of("y")])
    repository.push_image("latest")
    for version, manifest in (("1.0.0", delta), ("2.0.0", other), ("3.0.0-rc.1", delta)):
        assert repository.push_delta(local, manifest, version).status_code == 201
    assert repository.manifest("latest").content == other
    assert repository.put("latest", other).status_code == 201
    assert code_of(repository.put("latest", delta)) == (403, "DENIED")
    with server.state.database.writing() as connection:
        connection.execute(versions.update().where(versions.c.version == "2.0.0").values(yanked="broken"))
    assert repository.manifest("latest").content == delta


def test_tag_from_before_the_first_version_is_deleted_as_what_it_was(
    server: RunningServer, repository: Repository, local: Store, delta: bytes
) -> None:
    image = repository.push_image("latest")
    assert repository.push_delta(local, delta, "1.0.0").status_code == 201
    assert repository.delete("manifests/latest").status_code == 202
    assert actions(server)[-1] == ("tag.delete", "acme/search:latest", {"from": image})
    assert repository.manifest("latest").content == delta


def test_tags_of_other_manifests_move(server: RunningServer, repository: Repository) -> None:
    first = repository.push_image("draft", layers=[b"1"])
    second = repository.push_image("draft", layers=[b"2"])
    assert repository.manifest("draft").headers["docker-content-digest"] == second
    assert repository.manifest(first).status_code == 200
    assert repository.push_image("_mark.1.0.0", layers=[b"1"]) == first
    assert repository.tags() == ["_mark.1.0.0", "draft"]
    for tag in ("-draft", ".draft", "a" * 129, "ä"):
        assert repository.put(tag, document()).status_code == 400, tag


def test_what_is_no_manifest_is_refused(repository: Repository) -> None:
    for blob in (b"{}", b"more"):
        repository.push(blob)
    for data, media_type in (
        (b"", MANIFEST_TYPE),
        (b"{", MANIFEST_TYPE),
        (b"[]", MANIFEST_TYPE),
        (b'{"a": 1, "a": 2}', MANIFEST_TYPE),
        (b"[" * 100_000, MANIFEST_TYPE),
        (b'{"schemaVersion": 2, "layers": ' + b'{"a":' * 70 + b"1" + b"}" * 71, MANIFEST_TYPE),
        (document(schemaVersion=1), MANIFEST_TYPE),
        (document(mediaType="text/html"), "text/html"),
        (document(mediaType=INDEX_TYPE), INDEX_TYPE),
        (document(), INDEX_TYPE),
        (document(config=None), MANIFEST_TYPE),
        (document(layers=None), MANIFEST_TYPE),
        (document(manifests=[]), MANIFEST_TYPE),
        (document(layers=[{**described(b"{}"), "digest": "../../registry.db"}]), MANIFEST_TYPE),
        (document(layers=[{**described(b"{}"), "digest": "sha512:" + "0" * 128}]), MANIFEST_TYPE),
        (document(layers=[{**described(b"{}"), "size": -1}]), MANIFEST_TYPE),
        (document(layers=[{**described(b"{}"), "size": 3}]), MANIFEST_TYPE),
        (document(layers=[{**described(b"more"), "size": 3}]), MANIFEST_TYPE),
        (document(subject={**described(b"{}"), "digest": "sha256:x"}), MANIFEST_TYPE),
        (document(annotations={"a": 1}), MANIFEST_TYPE),
        (document(artifactType="x" * 300), MANIFEST_TYPE),
    ):
        assert code_of(repository.put("draft", data, media_type)) == (400, "MANIFEST_INVALID"), data[:100]
    assert repository.tags() == []


def test_manifest_above_the_limit_is_refused_and_one_of_four_megabytes_is_not(repository: Repository) -> None:
    repository.push(b"{}")
    whole = document(annotations={"a": ""})
    large = document(annotations={"a": "x" * (4 * 1024 * 1024 - len(whole))})
    assert repository.put("draft", large).status_code == 201
    assert repository.manifest("draft").content == large
    refused = repository.put("draft", large + b" ")
    assert code_of(refused) == (413, "MANIFEST_INVALID")
    detail = refused.json()["errors"][0]["detail"]
    assert (detail["code"], detail["status"], detail["detail"]) == ("DR0305", 413, "a manifest may have 4194304 bytes")


def test_manifest_whose_blobs_are_missing_is_refused(repository: Repository, local: Store, delta: bytes) -> None:
    repository.push(b"{}")
    answer = repository.put("draft", document(layers=[described(b"missing")]))
    assert code_of(answer) == (404, "MANIFEST_BLOB_UNKNOWN")
    assert answer.json()["errors"][0]["detail"]["data"]["missing"] == [sha256(b"missing")]
    for reference in ("1.0.0", sha256(delta)):
        assert code_of(repository.put(reference, delta)) == (404, "MANIFEST_BLOB_UNKNOWN")
    index = json.dumps({"schemaVersion": 2, "manifests": [described(document(), MANIFEST_TYPE)]}).encode()
    assert code_of(repository.put("index", index, INDEX_TYPE)) == (404, "MANIFEST_BLOB_UNKNOWN")
    # A blob of another repository does not count.
    other = Repository(repository.client, "acme/other")
    assert code_of(other.put("draft", document())) == (404, "MANIFEST_BLOB_UNKNOWN")


def test_layers_that_only_their_maker_keeps_need_not_be_here(repository: Repository) -> None:
    repository.push(b"{}")
    layer = described(b"elsewhere", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip")
    assert repository.put("draft", document(layers=[layer])).status_code == 201


def test_delta_that_is_none_is_not_published(repository: Repository, local: Store) -> None:
    hostile = add_delta(local, [b"\xff" * 64])
    assert code_of(repository.push_delta(local, hostile, "1.0.0")) == (400, "MANIFEST_INVALID")
    found = parse(Manifest, hostile, what="test")
    uninventoried = json.loads(hostile)
    uninventoried["layers"] = uninventoried["layers"][1:]
    assert len(found.layers) == 2
    assert code_of(repository.put("1.0.0", json.dumps(uninventoried).encode())) == (400, "MANIFEST_INVALID")
    assert repository.tags() == []


def test_digest_of_the_path_must_be_that_of_the_manifest(repository: Repository) -> None:
    repository.push(b"{}")
    assert code_of(repository.put("sha256:" + "0" * 64, document())) == (400, "DIGEST_INVALID")
    assert code_of(repository.put("sha256:0", document())) == (400, "DIGEST_INVALID")


def test_index_holds_manifests_to_a_bounded_depth(repository: Repository) -> None:
    repository.push_image("image")
    inner = repository.manifest("image").content
    statuses: list[int] = []
    for level in range(12):
        listed = [described(inner, MANIFEST_TYPE if level == 0 else INDEX_TYPE)]
        inner = json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": listed}).encode()
        answer = repository.put(f"level-{level}", inner, INDEX_TYPE)
        statuses.append(answer.status_code)
        if answer.status_code != 201:
            assert code_of(answer) == (400, "MANIFEST_INVALID")
            break
    assert statuses == 8 * [201] + [400]
    assert repository.manifest("level-3").headers["content-type"] == INDEX_TYPE


def test_tag_is_deleted_by_owners_and_its_manifest_stays(server: RunningServer, repository: Repository) -> None:
    digest = repository.push_image("draft")
    with server.client(server.user("paul", acme="publisher")) as client:
        assert code_of(client.delete(f"{repository.path}/manifests/draft")) == (403, "DENIED")
    assert repository.delete("manifests/draft").status_code == 202
    assert code_of(repository.manifest("draft")) == (404, "MANIFEST_UNKNOWN")
    assert repository.manifest(digest).status_code == 200
    assert code_of(repository.delete("manifests/draft")) == (404, "MANIFEST_UNKNOWN")
    assert actions(server)[-1] == ("tag.delete", "acme/search:draft", {"from": digest})


def test_manifest_is_deleted_with_its_tags(server: RunningServer, repository: Repository) -> None:
    digest = repository.push_image("draft")
    repository.push_image("same")
    assert repository.delete(f"manifests/{digest}").status_code == 202
    for reference in ("draft", "same", digest):
        assert code_of(repository.manifest(reference)) == (404, "MANIFEST_UNKNOWN")
    assert code_of(repository.delete(f"manifests/{digest}")) == (404, "MANIFEST_UNKNOWN")
    assert Repository(repository.client, "acme/absent").delete(f"manifests/{digest}").status_code == 404
    assert repository.delete(f"blobs/{sha256(b'layer')}").status_code == 202
    assert actions(server)[-2][0] == "manifest.delete"


def test_versions_are_not_deleted_unless_the_namespace_allows_it(
    server: RunningServer, repository: Repository, local: Store, delta: bytes
) -> None:
    repository.push_delta(local, delta, "1.0.0")
    repository.put("prod", delta)
    repository.push_image("2.0.0")
    image = repository.manifest("2.0.0").headers["docker-content-digest"]
    for rest in ("1.0.0", sha256(delta), "2.0.0", image):
        assert code_of(repository.delete(f"manifests/{rest}")) == (405, "UNSUPPORTED"), rest
    assert code_of(repository.delete("manifests/latest")) == (405, "UNSUPPORTED")
    assert repository.tags() == ["1.0.0", "2.0.0", "latest", "prod"]
    assert repository.delete("manifests/prod").status_code == 202


def test_removed_version_never_becomes_free(
    server: RunningServer, repository: Repository, local: Store, delta: bytes
) -> None:
    other = add_delta(local, [pack_of("y")])
    repository.push_delta(local, delta, "1.0.0")
    repository.put("prod", delta)
    image = repository.push_image("2.0.0")
    repository.push_image("edge")
    allow_deletion(server)
    assert repository.delete("manifests/1.0.0").status_code == 202
    assert repository.delete(f"manifests/{image}").status_code == 202
    assert repository.tags() == []
    for version in ("1.0.0", "2.0.0"):
        assert code_of(repository.push_delta(local, other, version)) == (409, "DENIED")
    with server.state.database.reading() as connection:
        gone = {row.version: row.digest for row in connection.execute(select(removed))}
    assert gone == {"1.0.0": sha256(delta), "2.0.0": image}
    assert ("version.remove", "acme/search:1.0.0", {"digest": sha256(delta)}) in actions(server)


def test_channel_stays_while_another_version_has_its_delta(
    server: RunningServer, repository: Repository, local: Store, delta: bytes
) -> None:
    for version in ("1.0.0", "1.0.1"):
        repository.push_delta(local, delta, version)
    repository.put("prod", delta)
    allow_deletion(server)
    assert repository.delete("manifests/1.0.0").status_code == 202
    assert repository.tags() == ["1.0.1", "latest", "prod"]


def test_manifests_need_their_rights(server: RunningServer, repository: Repository, local: Store) -> None:
    digest = Digest(repository.push_image("draft"))
    with server.client(server.user("rita", acme="reader")) as client:
        mine = Repository(client, repository.name)
        assert mine.manifest(digest).status_code == 200
        assert code_of(mine.put("draft", document())) == (403, "DENIED")
        assert code_of(mine.delete("manifests/draft")) == (403, "DENIED")
    with server.client(server.user("someone")) as client:
        assert Repository(client, repository.name).manifest("draft").status_code == 404
    with server.client(anonymous=True) as client:
        assert code_of(Repository(client, repository.name).manifest("draft")) == (401, "UNAUTHORIZED")
