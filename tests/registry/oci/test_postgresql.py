"""The same over PostgreSQL: two processes, one database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deltareg.digest import Digest, sha256
from deltareg.store import Store
from deltareg_registry.database.tables import blobs, namespaces
from deltareg_registry.upkeep.collect import collect
from tests.deltas import add_delta
from tests.registry.deltas import pack_of
from tests.registry.oci.repository import Repository, code_of
from tests.servers.deltareg_server import RunningServer, running_server


def test_two_processes_push_and_publish(shared: RunningServer, tmp_path: Path) -> None:
    local = Store(tmp_path / "local")
    manifests = [add_delta(local, [pack_of(f"{number}")]) for number in range(6)]
    settings = shared.state.settings
    with running_server(settings.data, settings) as second:

        def publish(number: int) -> int:
            at = (shared, second)[number % 2]
            with at.client(shared.token) as client:
                return Repository(client, "acme/search").push_delta(local, manifests[number], "1.0.0").status_code

        with shared.client() as client:
            Repository(client, "acme/search").push(b"x")
        with ThreadPoolExecutor(6) as pool:
            assert sorted(pool.map(publish, range(6))) == [201] + 5 * [409]


def test_chunks_tags_referrers_and_deletion(shared: RunningServer) -> None:
    with shared.client() as client:
        repository = Repository(client, "acme/search")
        place = repository.begin()
        assert client.patch(place, content=b"01234", headers={"Content-Range": "0-4"}).status_code == 202
        assert client.patch(place, content=b"x", headers={"Content-Range": "9-9"}).status_code == 416
        digest = sha256(b"0123456789")
        assert client.put(place, params={"digest": digest}, content=b"56789").status_code == 201
        image = repository.push_image("draft", layers=[b"0123456789"])
        repository.push_image("B", subject=image)
        assert repository.tags() == ["B", "draft"]
        assert len(client.get(f"{repository.path}/referrers/{image}").json()["manifests"]) == 1
        assert client.get("/v2/_catalog").json() == {"repositories": ["acme/search"]}
        assert repository.delete(f"manifests/{image}").status_code == 202
        mount = {"mount": digest, "from": "acme/search"}
        assert client.post("/v2/beta/other/blobs/uploads/", params=mount).status_code == 201


def test_quota_is_kept_by_those_who_push_at_once(shared: RunningServer) -> None:
    with shared.client() as client:
        Repository(client, "acme/search").push(b"x")
    with shared.state.database.writing() as connection:
        connection.execute(namespaces.update().values(quota=1 + 3 * 1000))

    def push(number: int) -> int:
        data = bytes([number]) * 1000
        with shared.client() as client:
            repository = Repository(client, "acme/search")
            return client.put(repository.begin(), params={"digest": sha256(data)}, content=data).status_code

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(push, range(8))) == 3 * [201] + 5 * [403]


def test_collection_beside_pushes_loses_nothing(shared: RunningServer) -> None:
    state = shared.state

    def push(number: int) -> Digest:
        with shared.client() as client:
            return Repository(client, "acme/search").push_image(f"t{number}", layers=[b"layer of all"])

    with shared.client() as client:
        for data in (b"x", b"layer of all"):
            Repository(client, "acme/search").push(data)
        with state.database.writing() as connection:
            connection.execute(blobs.update().values(touched="2020-01-01T00:00:00.000000Z"))
        with ThreadPoolExecutor(5) as pool:
            pushed = [pool.submit(push, number) for number in range(12)]
            for _ in range(4):
                collect(state.database, state.storage, 600)
            for one in pushed:
                one.result()
        repository = Repository(client, "acme/search")
        assert repository.blob(sha256(b"layer of all")).content == b"layer of all"
        collect(state.database, state.storage, 0)
        assert repository.blob(sha256(b"layer of all")).content == b"layer of all"
        assert code_of(repository.blob(sha256(b"x"))) == (404, "BLOB_UNKNOWN")
