"""A registry moves from one kind of database to the other, and goes on there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import Table, func, select

from deltareg.store import Store
from deltareg_registry.app import open_state
from deltareg_registry.database import Database
from deltareg_registry.database.tables import audit, deliveries, metadata, repositories, versions
from deltareg_registry.settings import ServerSettings
from deltareg_registry.upkeep.inspect import inspect_registry
from tests.program import install
from tests.registry.deltas import publish_delta
from tests.registry.oci.repository import Repository
from tests.servers.deltareg_server import RunningServer, running_server

OPERATING = Path(__file__).parents[2] / "docs" / "operating.md"
NUMBERED = (repositories, versions, audit, deliveries)


def rows_of(database: Database) -> dict[str, list[Mapping[str, Any]]]:
    """Everything that moves, by table.

    What search makes of the versions has numbers of its own, and revisions only have to grow.
    """
    with database.reading() as connection:
        return {
            table.name: [
                {key: value for key, value in row.items() if key != "revision"}
                for row in connection.execute(select(table)).mappings().all()
            ]
            for table in metadata.sorted_tables
            if table.name not in ("upkeep", "uploads", "searchable", "terms")
        }


def in_order(rows: Mapping[str, list[Mapping[str, Any]]]) -> dict[str, list[str]]:
    return {name: sorted(map(repr, found)) for name, found in rows.items()}


def fill(settings: ServerSettings, local: Store) -> tuple[str, str]:
    """Let a registry have rows of every kind; the tokens of its owner and of a publisher."""
    with running_server(settings.data, settings) as server, server.client() as client:
        assert client.post("/api/v1/namespaces", json={"name": "acme", "public": True}).status_code == 201
        assert client.patch("/api/v1/namespaces/acme", json={"policy": {"deletion": True}}).is_success
        assert client.put("/api/v1/namespaces/acme/quota", json={"bytes": 1 << 30}).is_success
        hook = {"url": "http://127.0.0.1:9/hook", "events": ["version.publish", "version.yank"]}
        assert client.post("/api/v1/namespaces/acme/webhooks", json=hook).status_code == 201
        digests = [publish_delta(server.state, f"acme/search:1.{number}.0", local, f"{number}") for number in range(4)]
        deltas = "/api/v1/deltas/acme/search"
        assert client.put(f"{deltas}/versions/1.1.0/yank", json={"reason": "wrong – sehr"}).is_success
        assert client.put(f"{deltas}/versions/1.3.0/deprecation", json={"reason": "猫"}).is_success
        channel = {"digest": digests[0], "expected": None}
        assert client.put(f"{deltas}/channels/prod", json=channel).is_success
        repository = Repository(client, "acme/search")
        assert repository.delete("manifests/1.2.0").status_code == 202
        repository.push_image("docs", subject=digests[0])
        assert repository.manifest("1.0.0").status_code == 200
        rita = server.user("rita", acme="publisher")
        return server.token, rita


def play(directory: Path, script: str) -> None:
    """Run commands as a shell does, each of which has to succeed."""
    path = f"{install(directory / 'bin')}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-ec", script], env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def highest(database: Database, table: Table) -> int:
    with database.reading() as connection:
        return connection.execute(select(func.max(table.c.id))).scalar_one()


def check_goes_on(server: RunningServer, local: Store, owner: str, rita: str) -> None:
    """What comes has new numbers, what was is found, and who was known is known."""
    before = {table.name: highest(server.state.database, table) for table in NUMBERED}
    digest = publish_delta(server.state, "acme/more:1.0.0", local, "after the move")
    for table in NUMBERED:
        assert highest(server.state.database, table) > before[table.name]
    with server.client(owner) as client:
        assert client.get("/api/v1/whoami").json()["admin"]
        found = client.get("/api/v1/search", params={"text": "search"}).json()
        assert {row["reference"] for row in found["results"]} == {"acme/search:1.0.0", "acme/search:1.3.0"}
        assert Repository(client, "acme/search").tags()[:3] == ["1.0.0", "1.1.0", "1.3.0"]
    with server.client(rita) as client:
        assert Repository(client, "acme/more").manifest("1.0.0").headers["docker-content-digest"] == digest
        Repository(client, "acme/more").push(b"rita may publish")
    with httpx2.Client(base_url=server.url) as anybody:
        assert anybody.get("/v2/acme/search/manifests/prod").status_code == 200
    assert inspect_registry(server.state.database, server.state.storage).faults == []


def moved(old: ServerSettings, new: ServerSettings) -> None:
    """Every row is there, as it was."""
    first, second = open_state(old), open_state(new)
    try:
        assert in_order(rows_of(second.database)) == in_order(rows_of(first.database))
        assert all(rows_of(second.database)[table.name] for table in NUMBERED)
    finally:
        first.database.close()
        second.database.close()


def test_registry_moves_from_sqlite_to_postgresql_as_the_guide_says(
    database: str, local: Store, tmp_path: Path
) -> None:
    old = ServerSettings(data=tmp_path / "data", webhook_hosts=("127.0.0.1",))
    owner, rita = fill(old, local)
    part = OPERATING.read_text().partition("### Moving from SQLite to PostgreSQL\n")[2].partition("\n#")[0]
    script = part.partition("```sh\n")[2].partition("```")[0]
    assert script.count("\n") == 3
    for told, here in {
        "/var/lib/deltareg": str(old.data),
        "/backups/deltareg": str(tmp_path / "copy"),
        "postgresql://deltareg@127.0.0.1/registry": database,
    }.items():
        assert told in script
        script = script.replace(told, here)
    play(tmp_path, script)
    new = ServerSettings(data=old.data, database=database)
    moved(old, new)
    with running_server(new.data, new) as server:
        assert server.token == "", "it has an owner"
        check_goes_on(server, local, owner, rita)


def test_registry_moves_from_postgresql_to_sqlite(database: str, local: Store, tmp_path: Path) -> None:
    old = ServerSettings(data=tmp_path / "old", database=database, webhook_hosts=("127.0.0.1",))
    owner, rita = fill(old, local)
    new = ServerSettings(data=tmp_path / "new")
    play(
        tmp_path,
        f"deltareg-registry backup {tmp_path / 'copy'} --data {old.data} --database {database}\n"
        f"deltareg-registry restore {tmp_path / 'copy'} --data {new.data}\n"
        f"deltareg-registry fsck --data {new.data}\n",
    )
    moved(old, new)
    with running_server(new.data, new) as server:
        check_goes_on(server, local, owner, rita)
