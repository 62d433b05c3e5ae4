"""`deltareg-registry gc`, `fsck`, `backup` and `restore`: beside a running server, or without one."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltareg_registry.cli.options import Data, DatabaseUrl, Json, StorageUrl, check_made

if TYPE_CHECKING:
    from deltareg.manifest import Document
    from deltareg_registry.state import State

__all__ = ["backup", "fsck", "gc", "restore"]


def gc(
    data: Data,
    database: DatabaseUrl = None,
    storage: StorageUrl = None,
    grace: Annotated[
        float, typer.Option("--grace", metavar="SECONDS", min=60, help="Spare what was sent or asked for since.")
    ] = 3600,
    untagged: Annotated[
        bool, typer.Option("--untagged", help="Remove manifests too that no name, index or subject holds.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be removed.")] = False,
    json: Json = False,
) -> None:
    """Remove blobs that no manifest names.

    The server may run meanwhile: whatever is being pushed or published is safe.

    \b
      deltareg-registry gc --data /srv/deltareg
    """
    from deltareg_registry.upkeep.collect import collect

    with _opened(data, database, storage) as state:
        _print(collect(state.database, state.storage, grace, untagged=untagged, dry_run=dry_run), json=json)


def fsck(
    data: Data,
    database: DatabaseUrl = None,
    storage: StorageUrl = None,
    quick: Annotated[bool, typer.Option("--quick", help="Compare sizes only, and read no blob.")] = False,
    json: Json = False,
) -> None:
    """Check that everything in the database is in the storage, byte by byte. Ends with status 5 where it is not.

    \b
      deltareg-registry fsck --data /srv/deltareg
    """
    from deltareg_registry.upkeep.inspect import inspect_registry

    with _opened(data, database, storage) as state:
        report = inspect_registry(state.database, state.storage, read=not quick)
    _print(report, json=json)
    if not report.ok:
        raise typer.Exit(5)


def backup(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The directory of the copy; an older one in it helps.")],
    data: Data,
    database: DatabaseUrl = None,
    storage: StorageUrl = None,
    json: Json = False,
) -> None:
    """Copy the registry, as it is at one moment, into a directory. The server may run meanwhile.

    The copy holds digests of tokens and secrets of webhooks: keep it like the registry itself.

    \b
      deltareg-registry backup /backups/deltareg --data /srv/deltareg
    """
    from deltareg_registry.upkeep import backup as copying

    with _opened(data, database, storage) as state:
        _print(copying.backup(state.database, state.storage, output.absolute()), json=json)


def restore(
    source: Annotated[Path, typer.Argument(metavar="COPY", help="The directory that backup wrote.")],
    data: Data,
    database: DatabaseUrl = None,
    storage: StorageUrl = None,
    json: Json = False,
) -> None:
    """Fill an empty registry from a copy; its database may be of another kind than the one that was copied.

    \b
      deltareg-registry restore /backups/deltareg --data /srv/new --database postgresql://…
    """
    from deltareg_registry.upkeep import backup as copying

    # Before a registry is made for it.
    copying.check_copy(source.absolute())
    with _opened(data, database, storage, new=True) as state:
        _print(copying.restore(source.absolute(), state.database, state.storage), json=json)


@contextmanager
def _opened(data: Path, database: str | None, storage: str | None, *, new: bool = False) -> Generator[State]:
    """The registry; `new`: it may have to be made. Raises DeltaregError, NotFound."""
    from deltareg_registry.app import open_state
    from deltareg_registry.settings import ServerSettings

    settings = ServerSettings(data=data.absolute(), database=database, storage=storage)
    if not new:
        check_made(settings)
    state = open_state(settings)
    try:
        yield state
    finally:
        state.database.close()


def _print(report: Document, *, json: bool) -> None:
    from deltareg.manifest import encode

    if json:
        typer.echo(encode(report).decode())
        return
    for name, value in report.model_dump(by_alias=False).items():
        if isinstance(value, list):
            for fault in value:  # type: ignore[reportUnknownVariableType]
                typer.echo(f"{fault['kind']}: {fault['message']}")
        else:
            shown = ("yes" if value else "no") if isinstance(value, bool) else value
            typer.echo(f"{name.replace('_', ' ')}: {shown}")
