"""The tables of a database that was brought up to date are those that the program works with."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from deltareg.errors import UnsupportedFormat
from deltareg_registry.database import SCHEMA, Database
from deltareg_registry.database.migrating import MIGRATIONS
from deltareg_registry.database.tables import metadata
from deltareg_registry.settings import ServerSettings
from tests.servers.deltareg_server import ROOT

# What triggers.py makes: tables of words, which SQLAlchemy does not know.
OUTSIDE = ("words", "ix_words_vector")


@pytest.fixture
def database(any_settings: ServerSettings) -> Database:
    """A new, empty database."""
    any_settings.data.mkdir()
    return Database(any_settings.database_url)


def is_ours(thing: object, name: str | None, kind: str, reflected: bool, other: object) -> bool:
    return not (name or "").startswith(OUTSIDE)


def test_tables_after_all_migrations_are_those_of_the_program(database: Database) -> None:
    database.upgrade()
    with database.reading() as connection:
        options = {"compare_type": True, "compare_server_default": True, "include_object": is_ours}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == [], "write another migration: the tables have changed"
        if database.is_sqlite:
            found = connection.execute(text("select name from sqlite_master where type = 'trigger'")).scalars()
            changes = {f"{table}_{event}" for table in ("tags", "versions") for event in ("insert", "update", "delete")}
            assert set(found) == {*changes, "words_delete"}
        else:
            found = connection.execute(text("select trigger_name from information_schema.triggers")).scalars()
            assert set(found) == {"tags_changed", "versions_changed"}
    database.upgrade()
    database.close()


def test_migrations_do_not_read_the_tables_of_today() -> None:
    # They would change with them, and leave databases that were made before as they are.
    for path in (MIGRATIONS / "versions").glob("0*.py"):
        assert "database.tables" not in path.read_text()[path.read_text().index("import") :], path.name


def test_the_schema_that_the_program_asks_for_is_that_of_the_last_migration() -> None:
    assert ScriptDirectory(MIGRATIONS).get_heads() == [SCHEMA]


def test_a_database_that_is_up_to_date_is_opened_without_alembic(database: Database) -> None:
    database.upgrade()
    database.close()
    code = """
import sys
from deltareg_registry.app import create_app
from deltareg_registry.database import Database
Database(sys.argv[1]).upgrade()
print(sorted({"alembic", "psycopg"} & set(sys.modules)))
"""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'registry'}"}
    command = [sys.executable, "-c", code, str(database.engine.url.render_as_string(hide_password=False))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == str([] if database.is_sqlite else ["psycopg"])


def test_database_of_a_newer_program_is_refused_and_left_as_it_is(database: Database) -> None:
    database.upgrade()
    with database.writing() as connection:
        connection.execute(text("update alembic_version set version_num = '9999'"))
    with pytest.raises(UnsupportedFormat, match="newer deltareg-registry") as caught:
        database.upgrade()
    assert "9999" in (caught.value.cause or "") and caught.value.hint is not None
    with database.writing() as connection:
        assert connection.execute(text("select version_num from alembic_version")).scalar_one() == "9999"
        connection.execute(text("update alembic_version set version_num = '0001'"))
    database.upgrade()
    database.close()


def test_processes_that_bring_a_database_up_to_date_at_once_wait_for_one_another(any_settings: ServerSettings) -> None:
    any_settings.data.mkdir()
    code = "import sys; from deltareg_registry.database import Database; Database(sys.argv[1]).upgrade()"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'registry'}"}
    command = [sys.executable, "-c", code, any_settings.database_url]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) for _ in range(4)]
    told = [process.communicate(timeout=60)[1] for process in started]
    assert [process.returncode for process in started] == [0] * 4, told
