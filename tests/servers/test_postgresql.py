"""PostgreSQL answers, and databases come and go."""

from __future__ import annotations

import subprocess

import pytest

from tests.servers.postgresql import PostgreSQL, serve_postgresql
from tests.servers.process import find


def ask(url: str, query: str) -> str:
    psql = find("/usr/lib/postgresql/*/bin/psql", "postgresql")
    done = subprocess.run([psql, "--no-psqlrc", "-qtAc", query, url], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_database_is_empty_and_may_be_written(database: str) -> None:
    assert ask(database, "select count(*) from pg_tables where schemaname = 'public'") == "0"
    ask(database, "create table blobs (digest text primary key)")
    ask(database, "insert into blobs values ('sha256:00')")
    assert ask(database, "select digest from blobs") == "sha256:00"


def test_database_is_gone_in_the_end_even_from_under_a_client(postgresql: PostgreSQL) -> None:
    psql = find("/usr/lib/postgresql/*/bin/psql", "postgresql")
    with postgresql.database() as url:
        client = subprocess.Popen([psql, "-q", url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert client.stdin is not None and client.stdout is not None
        client.stdin.write("\\echo ready\n")
        client.stdin.flush()
        assert client.stdout.readline() == "ready\n"
    client.communicate("select 1;\n")
    assert client.returncode != 0
    with postgresql.database() as other, pytest.raises(AssertionError, match="does not exist"):
        ask(f"{other.rpartition('/')[0]}/{url.rpartition('/')[2]}", "select 1")


def test_durability_and_settings_are_arguments(database: str) -> None:
    assert ask(database, "show fsync") == "off"
    with serve_postgresql(fsync=True, settings={"max_connections": "17"}) as server, server.database() as url:
        assert (ask(url, "show fsync"), ask(url, "show max_connections")) == ("on", "17")
