"""How the commands show namespaces."""

from __future__ import annotations

from pathlib import Path

from deltareg.cli.output import hint, print_json, print_table
from deltareg.cli.units import size
from deltareg.manifest import Document
from deltareg_registry.access.principal import Principal
from deltareg_registry.database import Database
from deltareg_registry.records.namespaces import Namespace, list_namespaces, namespace_named
from deltareg_registry.records.policies import Signer, policy_of, signers_of
from deltareg_registry.records.statistics import NamespaceCount, count_namespaces

__all__ = ["print_namespace", "print_namespaces", "print_signers"]

_PAGE = 500
_ALL = Principal("operator", admin=True)


class NamespaceRow(Document):
    """A namespace, as its operator sees it."""

    name: str
    public: bool
    created: str
    repositories: int
    versions: int
    used: int
    quota: int | None
    pulls: int


class NamespaceSigners(Document):
    """The keys of a namespace, one of which has to have signed what is in it."""

    namespace: str
    signers: list[Signer]


class NamespaceRows(Document):
    """All namespaces."""

    namespaces: list[NamespaceRow]


def print_namespace(database: Database, name: str, *, json: bool) -> None:
    """One namespace. Raises NotFound."""
    with database.reading() as connection:
        row = _row(namespace_named(connection, name), count_namespaces(connection, [name])[0])
    if json:
        print_json(row)
    else:
        _print_table([row])


def print_signers(database: Database, name: str, *, json: bool) -> None:
    """The keys of a namespace. Raises NotFound."""
    with database.reading() as connection:
        signers = signers_of(policy_of(connection, name))
    if json:
        print_json(NamespaceSigners(namespace=name, signers=signers))
    elif signers:
        print_table(["namespace", "key"], [[name, signer.fingerprint] for signer in signers])
    else:
        hint(f"no signatures are asked for in {name}; --key FILE asks for them")


def print_namespaces(database: Database, data: Path, *, json: bool) -> None:
    """All namespaces by name, of the registry in `data`."""
    rows: list[NamespaceRow] = []
    with database.reading() as connection:
        while page := list_namespaces(connection, _ALL, after=rows[-1].name if rows else "", limit=_PAGE):
            counted = count_namespaces(connection, [each.name for each in page])
            rows += [_row(namespace, counts) for namespace, counts in zip(page, counted, strict=True)]
    if json:
        print_json(NamespaceRows(namespaces=rows))
    elif not rows:
        hint(
            "there is no namespace yet; make one: "
            f"deltareg-registry admin namespace create NAME --owner USER --data {data}"
        )
    else:
        _print_table(rows)


def _row(namespace: Namespace, counts: NamespaceCount) -> NamespaceRow:
    return NamespaceRow(
        name=namespace.name,
        public=namespace.public,
        created=namespace.created,
        repositories=counts.repositories,
        versions=counts.versions,
        used=counts.size,
        quota=namespace.quota,
        pulls=counts.pulls,
    )


def _print_table(rows: list[NamespaceRow]) -> None:
    columns = ["namespace", "public", "repositories", "versions", "used", "quota", "pulls"]
    shown = [
        [
            row.name,
            "yes" if row.public else "",
            str(row.repositories),
            str(row.versions),
            size(row.used),
            "" if row.quota is None else size(row.quota),
            str(row.pulls),
        ]
        for row in rows
    ]
    print_table(columns, shown, right=columns[2:])
