"""Yanks and deprecations: what is said against a version, whose bytes stay."""

from __future__ import annotations

from typing import Literal

from sqlalchemy import Connection, RowMapping, update

from deltareg.errors import BadName
from deltareg.names import Reference, parse_reason
from deltareg_registry.access.principal import Principal
from deltareg_registry.database.tables import versions
from deltareg_registry.records.events import Event, announce
from deltareg_registry.records.names import version_row
from deltareg_registry.records.namespaces import locked_repository
from deltareg_registry.records.searchable import note_yank

__all__ = ["Mark", "set_mark"]

Mark = Literal["yanked", "deprecated"]

_ACTIONS: dict[tuple[Mark, bool], Event] = {
    ("yanked", True): "version.yank",
    ("yanked", False): "version.unyank",
    ("deprecated", True): "version.deprecate",
    ("deprecated", False): "version.undeprecate",
}


def set_mark(
    connection: Connection,
    principal: Principal,
    reference: Reference,
    mark: Mark,
    reason: str | None,
    *,
    address: str | None = None,
) -> RowMapping:
    """Say why a version is yanked or deprecated, or with None take it back; return its row as it is then.

    What changes nothing is not noted in the audit log. Raises NotFound; BadName where `reference` is no version;
    InvalidArgument for what is no reason.
    """
    if reference.version is None:
        raise BadName(f"{reference} does not name a version", hint="write namespace/name:1.2.3")
    told = None if reason is None else parse_reason(reason)
    repository = locked_repository(connection, reference.namespace, reference.name)
    row = version_row(connection, repository, reference)
    if row[mark] == told:
        return row
    connection.execute(update(versions).where(versions.c.id == row["id"]).values({mark: told}))
    if mark == "yanked":
        note_yank(connection, row["id"], yanked=told is not None)
    action = _ACTIONS[mark, told is not None]
    detail = {"digest": row["digest"], **({} if told is None else {"reason": told})}
    announce(connection, principal, action, reference, detail, address=address)
    return version_row(connection, repository, reference)
