"""What a mirror lacks, from the names of both sides alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from deltareg.digest import Digest
from deltareg.names import Reference, as_reason, version_key
from deltareg.remote import Remote, RemoteEntry

__all__ = ["Move", "Plan", "Scope", "mark", "plan_of"]

_NO_REASON = "no reason is given"


@dataclass(frozen=True)
class Scope:
    """Which names are mirrored: those of these namespaces and repositories; all, where neither names any.

    `since` leaves out versions that were published before. One whose time is not known is taken.
    """

    namespaces: frozenset[str] = frozenset()
    repositories: frozenset[str] = frozenset()
    since: datetime | None = None

    def covers(self, entry: RemoteEntry) -> bool:
        """Whether a name belongs to it, whenever it was published."""
        if not self.namespaces and not self.repositories:
            return True
        return entry.reference.namespace in self.namespaces or entry.reference.repository in self.repositories

    def takes(self, entry: RemoteEntry) -> bool:
        """Whether a version was published late enough."""
        if self.since is None or not entry.created:
            return True
        try:
            created = datetime.fromisoformat(entry.created)
        except ValueError:
            return True
        return (created if created.tzinfo is not None else created.replace(tzinfo=UTC)) >= self.since


@dataclass(frozen=True)
class Move:
    """A channel that is to name a version; `expected` is what it names until now."""

    channel: Reference
    digest: Digest
    expected: Digest | None


@dataclass
class Plan:
    """What is to be done. Versions in `copies` are not there yet, those in `present` are, with the same bytes.

    `marked` are present and differ in what is said of them; `refused` have other bytes there, whose digest is given.
    """

    copies: list[RemoteEntry] = field(default_factory=list[RemoteEntry])
    present: list[RemoteEntry] = field(default_factory=list[RemoteEntry])
    marked: list[RemoteEntry] = field(default_factory=list[RemoteEntry])
    refused: list[tuple[RemoteEntry, Digest]] = field(default_factory=list[tuple[RemoteEntry, Digest]])
    moves: list[Move] = field(default_factory=list[Move])
    dropped: list[RemoteEntry] = field(default_factory=list[RemoteEntry])
    removed: list[RemoteEntry] = field(default_factory=list[RemoteEntry])


def plan_of(source: Iterable[RemoteEntry], there: Iterable[RemoteEntry], scope: Scope, *, delete: bool) -> Plan:
    """What makes the names `there` those of `source`, oldest versions first; with `delete` also what is too much."""
    wanted = {entry.reference: entry for entry in source if scope.covers(entry)}
    known = {entry.reference: entry for entry in there if scope.covers(entry)}
    plan = Plan()
    for entry in _in_order(wanted):
        found = known.get(entry.reference)
        if entry.reference.version is None:
            if found is None or found.digest != entry.digest:
                plan.moves.append(Move(entry.reference, entry.digest, None if found is None else found.digest))
        elif found is None:
            if scope.takes(entry):
                plan.copies.append(entry)
        elif found.digest != entry.digest:
            plan.refused.append((entry, found.digest))
        else:
            plan.present.append(entry)
            if _marks(entry) != _marks(found):
                plan.marked.append(entry)
    if delete:
        gone = [entry for entry in _in_order(known) if entry.reference not in wanted]
        plan.dropped = [entry for entry in gone if entry.reference.version is None]
        plan.removed = [entry for entry in gone if entry.reference.version is not None]
    return plan


def mark(remote: Remote, entry: RemoteEntry) -> None:
    """Let a remote say of a version what `entry` says of it."""
    yanked, deprecated = _marks(entry)
    if yanked is None:
        remote.unyank(entry.reference)
    else:
        remote.yank(entry.reference, yanked)
    if deprecated is None:
        remote.undeprecate(entry.reference)
    else:
        remote.deprecate(entry.reference, deprecated)


def _in_order(entries: Mapping[Reference, RemoteEntry]) -> list[RemoteEntry]:
    """By name, versions from the lowest up, and then channels."""

    def place(entry: RemoteEntry) -> tuple[object, ...]:
        tag = str(entry.reference.tag)
        version = entry.reference.version
        return (entry.reference.repository, version is None, tag if version is None else version_key(version))

    return sorted(entries.values(), key=place)


def _marks(entry: RemoteEntry) -> tuple[str | None, str | None]:
    """Why a version is yanked and deprecated, as far as that can be taken over."""
    yanked, deprecated = (
        None if reason is None else as_reason(reason) or _NO_REASON for reason in (entry.yanked, entry.deprecated)
    )
    return yanked, deprecated
