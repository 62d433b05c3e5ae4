"""Tags, repositories and referrers are listed, a page at a time, to whoever may read them."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import httpx2

from deltareg.digest import sha256
from deltareg.manifest import INDEX_TYPE, MANIFEST_TYPE
from deltareg_registry.database import now
from deltareg_registry.database.tables import manifests, namespaces, repositories, tags
from deltareg_registry.settings import ServerSettings
from tests.registry.oci.repository import EMPTY_TYPE, Repository, code_of
from tests.servers.deltareg_server import RunningServer, running_server


def pages(client: httpx2.Client, path: str, key: str) -> list[list[str]]:
    """Every page of a list, as the Link headers lead through it."""
    found: list[list[str]] = []
    following: str | None = path
    while following is not None:
        answer = client.get(following)
        assert answer.status_code == 200
        found.append(answer.json()[key])
        link = answer.links.get("next")
        following = None if link is None else link["url"]
    return found


def test_tags_are_listed_in_the_order_of_their_bytes(repository: Repository) -> None:
    for tag in ("b", "B", "a", "_x", "0.1", "1.0.0", "1.0.10", "1.0.9"):
        repository.push_image(tag)
    answer = repository.client.get(f"{repository.path}/tags/list")
    expected = ["0.1", "1.0.0", "1.0.10", "1.0.9", "B", "_x", "a", "b"]
    assert answer.json() == {"name": "acme/search", "tags": expected}
    path = f"{repository.path}/tags/list"
    assert pages(repository.client, f"{path}?n=3", "tags") == [expected[:3], expected[3:6], expected[6:]]
    assert pages(repository.client, f"{path}?n=8", "tags") == [expected]
    assert pages(repository.client, f"{path}?n=2&last=B", "tags") == [["_x", "a"], ["b"]]
    assert pages(repository.client, f"{path}?last=C", "tags") == [["_x", "a", "b"]]
    none = repository.client.get(f"{path}?n=0")
    assert (none.json()["tags"], "link" in none.headers) == ([], False)


def test_numbers_that_are_none_are_refused(repository: Repository) -> None:
    repository.push(b"x")
    for text in ("-1", "x", "1.5", "", "٣"):
        assert repository.client.get(f"{repository.path}/tags/list", params={"n": text}).status_code == 400, text
        assert repository.client.get("/v2/_catalog", params={"n": text}).status_code == 400
    assert repository.client.get(f"{repository.path}/tags/list", params={"n": "9" * 400}).status_code == 200


def test_repository_without_tags_has_none_and_an_absent_one_is_unknown(repository: Repository) -> None:
    assert code_of(repository.client.get(f"{repository.path}/tags/list")) == (404, "NAME_UNKNOWN")
    repository.push(b"x")
    assert repository.tags() == []


def test_ten_thousand_tags_are_listed(server: RunningServer, repository: Repository) -> None:
    digest = repository.push_image("first")
    with server.state.database.writing() as connection:
        rows = [
            {"repository": 1, "tag": f"t{number:05}", "digest": digest, "updated": now()} for number in range(10_001)
        ]
        connection.execute(tags.insert(), rows)
    found = pages(repository.client, f"{repository.path}/tags/list", "tags")
    assert [len(page) for page in found] == [10_000, 2]


def test_catalog_lists_what_may_be_read(server: RunningServer, repository: Repository) -> None:
    for name in ("acme/b", "acme/a", "beta/x", "open/y"):
        Repository(repository.client, name).push(b"x")
    with server.state.database.writing() as connection:
        connection.execute(namespaces.update().where(namespaces.c.name == "open").values(public=True))
    everything = ["acme/a", "acme/b", "beta/x", "open/y"]
    assert pages(repository.client, "/v2/_catalog?n=2", "repositories") == [everything[:2], everything[2:]]
    assert pages(repository.client, "/v2/_catalog?n=3", "repositories") == [everything[:3], everything[3:]]
    assert repository.client.get("/v2/_catalog?n=0").json() == {"repositories": []}
    with server.client(server.user("rita", beta="reader")) as client:
        assert pages(client, "/v2/_catalog", "repositories") == [["beta/x", "open/y"]]
    with server.client(anonymous=True) as client:
        assert pages(client, "/v2/_catalog", "repositories") == [["open/y"]]


def test_referrers_are_listed_before_and_after_their_subject_is_there(repository: Repository) -> None:
    subject = sha256(b"not there yet")
    repository.push(b"x")
    assert repository.client.get(f"{repository.path}/referrers/{subject}").json()["manifests"] == []
    first = repository.push_image(subject=subject, artifact_type="application/vnd.example.sbom", annotations={"a": "b"})
    second = repository.push_image("signed", subject=subject, layers=[b"signature"])
    answer = repository.client.get(f"{repository.path}/referrers/{subject}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, INDEX_TYPE)
    assert answer.json()["schemaVersion"] == 2 and answer.json()["mediaType"] == INDEX_TYPE
    found = {one["digest"]: one for one in answer.json()["manifests"]}
    assert found[first]["artifactType"] == "application/vnd.example.sbom"
    assert found[first]["annotations"] == {"a": "b"}
    assert found[first]["mediaType"] == MANIFEST_TYPE
    assert found[first]["size"] == len(repository.manifest(first).content)
    # Without an artifactType that of the config stands in.
    assert found[second]["artifactType"] == EMPTY_TYPE
    assert repository.delete(f"manifests/{second}").status_code == 202
    again = repository.client.get(f"{repository.path}/referrers/{subject}").json()["manifests"]
    assert [one["digest"] for one in again] == [first]


def test_manifest_with_a_subject_is_answered_with_it(repository: Repository) -> None:
    repository.push(b"{}")
    subject = sha256(b"subject")
    digest = repository.push_image(subject=subject)
    answer = repository.put(digest, repository.manifest(digest).content)
    assert (answer.status_code, answer.headers["oci-subject"]) == (201, subject)


def test_referrers_are_filtered(repository: Repository) -> None:
    subject = sha256(b"subject")
    wanted = repository.push_image(subject=subject, artifact_type="application/a+json")
    repository.push_image(subject=subject, artifact_type="application/b")
    path = f"{repository.path}/referrers/{subject}"
    answer = repository.client.get(path, params={"artifactType": "application/a+json"})
    assert [one["digest"] for one in answer.json()["manifests"]] == [wanted]
    assert answer.headers["oci-filters-applied"] == "artifactType"
    assert "oci-filters-applied" not in repository.client.get(path).headers


def test_many_referrers_come_in_pages(server: RunningServer, repository: Repository) -> None:
    subject = sha256(b"subject")
    repository.push_image(subject=subject, artifact_type="application/a+json", annotations={"a": "x" * 4000})
    with server.state.database.writing() as connection:
        row = connection.execute(manifests.select()).one()._asdict()
        rows = [{**row, "digest": sha256(f"{number}".encode())} for number in range(1500)]
        connection.execute(manifests.insert(), rows)
    path = f"{repository.path}/referrers/{subject}?artifactType=application%2Fa%2Bjson"
    found = pages(repository.client, path, "manifests")
    assert len(found) > 1
    digests = [one["digest"] for page in found for one in page]  # type: ignore[index]
    assert len(digests) == len(set(digests)) == 1501
    assert len(repository.client.get(path).content) < 4 << 20


def test_referrers_of_no_digest_are_refused_and_never_404(repository: Repository) -> None:
    for text in ("sha256:abc", "latest", "sha256:" + "g" * 64):
        assert code_of(repository.client.get(f"{repository.path}/referrers/{text}")) == (400, "DIGEST_INVALID")
    for name in ("acme/absent", "absent/absent"):
        answer = repository.client.get(f"/v2/{name}/referrers/{sha256(b'x')}")
        assert (answer.status_code, answer.json()["manifests"]) == (200, [])


def test_referrers_are_shown_to_who_may_read_alone(server: RunningServer, repository: Repository) -> None:
    subject = sha256(b"subject")
    repository.push_image(subject=subject)
    path = f"{repository.path}/referrers/{subject}"
    with server.client(server.user("someone")) as client:
        assert (client.get(path).status_code, client.get(path).json()["manifests"]) == (200, [])
    with server.client(anonymous=True) as client:
        assert code_of(client.get(path)) == (401, "UNAUTHORIZED")
    with server.client(server.user("rita", acme="reader")) as client:
        assert len(client.get(path).json()["manifests"]) == 1


def test_base_tells_who_may_use_the_registry(server: RunningServer) -> None:
    with server.client() as client:
        assert client.get("/v2/").status_code == 200
    basic = base64.b64encode(f"anyone:{server.token}".encode()).decode()
    nobody = base64.b64encode(b":").decode()
    with server.client(anonymous=True) as client:
        answer = client.get("/v2/")
        assert code_of(answer) == (401, "UNAUTHORIZED")
        assert answer.headers["www-authenticate"] == f'Bearer realm="{server.url}/v2/token",service="deltareg"'
        assert client.get("/v2/", headers={"Authorization": f"Basic {basic}"}).status_code == 200
        assert client.get("/v2/", headers={"Authorization": "Bearer anonymous"}).status_code == 401
        for wrong in (f"Basic {basic[:-8]}", "Basic !", "Bearer drt_wrong", "Digest x", f"Basic {nobody}"):
            assert client.get("/v2/", headers={"Authorization": wrong}).status_code == 401
        with server.state.database.writing() as connection:
            row = {"name": "open", "public": True, "created": now(), "policy": {}}
            connection.execute(namespaces.insert(), row)
        # docker sends a password only where the first answer is a refusal that asks for one.
        assert client.get("/v2/").status_code == 401
        for nobodys in (f"Basic {nobody}", "Bearer anonymous"):
            assert client.get("/v2/", headers={"Authorization": nobodys}).status_code == 200


def challenge_of(answer: httpx2.Response) -> dict[str, str]:
    assert answer.status_code == 401
    scheme, _, told = answer.headers["www-authenticate"].partition(" ")
    assert scheme == "Bearer"
    return dict(re.findall(r'([a-z]+)="([^"]*)"', told))


def test_token_is_got_as_docker_gets_it(server: RunningServer) -> None:
    with server.client() as client:
        for name, public in (("acme", False), ("open", True)):
            assert client.post("/api/v1/namespaces", json={"name": name, "public": public}).status_code == 201
            Repository(client, f"{name}/search").push_image("1")
    rita = server.user("rita", acme="publisher")
    with server.client(anonymous=True) as client:
        place = challenge_of(client.get("/v2/"))
        asked = {"service": place["service"], "scope": "repository:acme/search:pull,push"}
        answer = client.get(place["realm"], params={**asked, "account": "rita"}, auth=("rita", rita))
        assert answer.headers["cache-control"] == "no-store"
        token = answer.json()["token"]
        assert answer.json()["access_token"] == token and answer.json()["expires_in"] >= 60
        anonymous = client.get(place["realm"], params=asked).json()["token"]
        wrong = client.get(place["realm"], params=asked, auth=("rita", "drt_wrong"))
        assert code_of(wrong) == (401, "UNAUTHORIZED")
        # containerd tries a form first, and takes 404 for a registry that has none.
        assert client.post(place["realm"], data={"grant_type": "password", "password": rita}).status_code == 404
        for given, name, read, push in (
            (token, "acme", 200, 202),
            (token, "open", 200, 403),
            (anonymous, "acme", 401, 401),
            (anonymous, "open", 200, 401),
            (None, "acme", 401, 401),
            (None, "open", 200, 401),
        ):
            headers = {} if given is None else {"Authorization": f"Bearer {given}"}
            found = client.get(f"/v2/{name}/search/manifests/1", headers=headers)
            assert found.status_code == read, (given, name)
            begun = client.post(f"/v2/{name}/search/blobs/uploads/", headers=headers)
            assert begun.status_code == push, (given, name)
        assert challenge_of(client.get("/v2/acme/search/manifests/1"))["scope"] == "repository:acme/search:pull"
        assert challenge_of(begun)["scope"] == "repository:open/search:pull,push"


def test_token_is_to_be_got_where_clients_reach_the_server(tmp_path: Path) -> None:
    settings = ServerSettings(data=tmp_path / "server", url="https://registry.example.com/")
    with running_server(settings.data, settings) as server, server.client(anonymous=True) as client:
        assert challenge_of(client.get("/v2/"))["realm"] == "https://registry.example.com/v2/token"


def test_names_that_no_repository_has_here_are_invalid(server: RunningServer) -> None:
    digest = sha256(b"x")
    with server.client() as client:
        for name in ("one", "a/b/c", "Acme/search", "acme/Search", "acme/_x", "acme/x--y", "a" * 70 + "/x"):
            for rest in (f"blobs/{digest}", "manifests/latest", "tags/list", f"referrers/{digest}"):
                assert code_of(client.get(f"/v2/{name}/{rest}")) == (404, "NAME_INVALID"), f"{name} {rest}"
            assert code_of(client.post(f"/v2/{name}/blobs/uploads/")) == (400, "NAME_INVALID")
            assert code_of(client.put(f"/v2/{name}/manifests/latest", content=b"{}")) == (400, "NAME_INVALID")
    with server.state.database.reading() as connection:
        assert connection.execute(repositories.select()).all() == []


def test_paths_that_are_none_are_told_so(repository: Repository) -> None:
    repository.push(b"x")
    client = repository.client
    assert code_of(client.get("/v2/nothing")) == (404, "NAME_UNKNOWN")
    refused = client.post(f"{repository.path}/manifests/latest")
    assert code_of(refused) == (405, "UNSUPPORTED")
    assert refused.json()["errors"][0]["detail"]["code"] == "DR0100"
    absent = client.get("/v2/nothing").json()["errors"][0]["detail"]
    assert absent["code"] == "DR0002"
    assert code_of(client.put(f"{repository.path}/tags/list")) == (405, "UNSUPPORTED")
    assert code_of(client.get(f"{repository.path}/tags/other")) == (404, "UNSUPPORTED")
