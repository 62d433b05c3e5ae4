"""Options that several commands have, and how they open the registry."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from deltareg_registry.database import Database
    from deltareg_registry.settings import ServerSettings

__all__ = ["Data", "DatabaseUrl", "Json", "LogFormat", "Makers", "StorageUrl", "check_made", "open_database"]


class Makers(StrEnum):
    """Who may make namespaces."""

    everybody = "everybody"
    admins = "admins"


class LogFormat(StrEnum):
    """How the log is written."""

    text = "text"
    json = "json"


# From the environment too: everybody on the machine sees the arguments of a process, and URLs hold passwords.
Data = Annotated[
    Path,
    typer.Option(
        "--data", metavar="DIR", envvar="DELTAREG_REGISTRY_DATA", help="Where the database and the blobs are kept."
    ),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        envvar="DELTAREG_REGISTRY_DATABASE",
        help="postgresql://…; without it SQLite in DIR.",
    ),
]
StorageUrl = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        envvar="DELTAREG_REGISTRY_STORAGE",
        help="s3://bucket/prefix; without it files in DIR.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@contextmanager
def open_database(data: Path, url: str | None) -> Generator[Database]:
    """The database of a registry that was made before, brought up to date. Raises DeltaregError, NotFound."""
    from deltareg_registry.database import Database
    from deltareg_registry.settings import ServerSettings

    settings = ServerSettings(data=data.absolute(), database=url)
    check_made(settings)
    database = Database(settings.database_url)
    try:
        database.upgrade()
        yield database
    finally:
        database.close()


def check_made(settings: ServerSettings) -> None:
    """Raise NotFound where the data directory should hold the database of a registry, and holds none.

    A directory that is misspelt must not become an empty registry, which is sound, and of which a copy holds nothing.
    """
    from deltareg.errors import NotFound

    if settings.database is None and not (settings.data / "registry.db").is_file():
        raise NotFound(
            f"there is no registry in {settings.data}",
            cause="it has no registry.db" if settings.data.is_dir() else "it is no directory",
            hint=f"check --data; a new registry is made by deltareg-registry serve --data {settings.data}",
        )
