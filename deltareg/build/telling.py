"""Telling about a recipe's deltas: why these versions, what hangs on what, what newer ones there are."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager

from pydantic import Field

from deltareg.build.project import Project
from deltareg.build.settings import weight_schedule
from deltareg.errors import NotFound, NothingFits
from deltareg.lock import Lock, LockedDelta
from deltareg.manifest import Document
from deltareg.names import parse_reference, version_key
from deltareg.resolve import Candidate, Resolution, Sources, resolve
from deltareg.resolve.explain import looked_at, told_of
from deltareg.resolve.resolve import Base
from deltareg.resolve.search import Wish, required_wish

__all__ = ["OutdatedReport", "OutdatedRow", "TreeReport", "TreeRow", "WhyReport", "outdated", "tree", "why"]


class WhyReport(Document):
    """Why a delta has the version that it has."""

    reference: str
    digest: str
    remote: str
    requirements: list[str] = Field(description="who asks for it, and for what")
    versions: list[str] = Field(description="every version, the highest first, with what became of it")


class TreeRow(Document):
    """One line of a tree: a delta, and how deep it hangs."""

    reference: str
    depth: int
    weight: float | str = Field(description="weight, or the rules of weights as text")
    wanted: str | None = Field(description="what the recipe asks for; null where another delta does")
    repeated: bool = Field(description="what hangs on it was drawn above")


class TreeReport(Document):
    """What hangs on what."""

    name: str
    base: str
    rows: list[TreeRow]


class OutdatedRow(Document):
    """One delta, and what there is of it."""

    reference: str
    locked: str = Field(description="version in the lock")
    wanted: str | None = Field(description="what the recipe asks for; null where another delta does")
    fitting: str | None = Field(
        description="the highest version that fits; null where the delta is not needed any more"
    )
    latest: str | None = Field(description="the highest release that there is")
    note: str | None = Field(default=None, description="that it was yanked or deprecated, or is gone")


class OutdatedReport(Document):
    """Which deltas of a lock have newer versions."""

    rows: list[OutdatedRow]
    outdated: int = Field(description="deltas for which another version fits than the locked one")


def why(project: Project, sources: Sources, repository: str, *, threads: int | None = None) -> WhyReport:
    """Why the recipe gets the version of a delta that it gets: who asks for it, and what is wrong with the others.

    Raises NotFound where the recipe does not lead to the delta, and what `resolve` raises.
    """
    name = parse_reference(repository).repository
    with _resolved(project, sources, project.lock_if_any(), threads) as found:
        choice = found.choice(name)
        if choice is None:
            there = ", ".join(one.candidate.repository for one in found.choices)
            raise NotFound(
                f"{project.name} does not lead to {name}", cause=f"it leads to {there}", hint="deltareg tree"
            )
        wishes = list(_wishes(found, name))
        chosen = choice.candidate
        return WhyReport(
            reference=str(chosen.reference),
            digest=chosen.digest,
            remote=chosen.remote,
            requirements=[told_of(wish, project.name) for wish in wishes],
            versions=looked_at(name, wishes, found.pool, chosen),
        )


def tree(project: Project) -> TreeReport:
    """What hangs on what, as the lock has it. Raises LockStale where there is none."""
    lock = project.lock()
    below: dict[str, list[LockedDelta]] = {one.name.repository: [] for one in lock.deltas}
    for one in lock.deltas:
        for by in one.required_by:
            below[by].append(one)
    rows: list[TreeRow] = []
    shown: set[str] = set()
    waiting = [(one, 0) for one in reversed(lock.deltas) if one.wanted is not None]
    while waiting:
        delta, depth = waiting.pop()
        name = delta.name.repository
        repeated = name in shown and bool(below[name])
        rows.append(
            TreeRow(
                reference=delta.reference,
                depth=depth,
                weight=weight_schedule(delta.weight, delta.where).plain,  # type: ignore[arg-type]
                wanted=delta.wanted,
                repeated=repeated,
            )
        )
        shown.add(name)
        if not repeated:
            waiting += [(other, depth + 1) for other in reversed(below[name])]
    return TreeReport(name=lock.name or project.name, base=lock.base.location, rows=rows)


def outdated(project: Project, sources: Sources, *, threads: int | None = None) -> OutdatedReport:
    """Which deltas of the lock have newer versions: those that the recipe allows, and the highest of all."""
    lock = project.lock()
    try:
        with _resolved(project, sources, None, threads) as found:
            return _outdated(lock, found)
    except NothingFits:
        # Without what the lock alone keeps, such as a yanked version that nothing has replaced yet.
        with _resolved(project, sources, lock, threads) as found:
            return _outdated(lock, found)


def _outdated(lock: Lock, found: Resolution) -> OutdatedReport:
    rows: list[OutdatedRow] = []
    for one in lock.deltas:
        name = one.name.repository
        choice = found.choice(name)
        everything = found.pool.candidates(name, one.remote)
        releases = [key for other in everything if (key := version_key(other.version)).prerelease is None]
        here = next((other for other in everything if other.digest == one.digest), None)
        rows.append(
            OutdatedRow(
                reference=name,
                locked=str(one.name.tag),
                wanted=one.wanted,
                fitting=None if choice is None else choice.candidate.version,
                latest=str(max(releases)) if releases else None,
                note=_note(here, one.remote),
            )
        )
    count = sum(row.fitting != row.locked for row in rows)
    return OutdatedReport(rows=rows, outdated=count)


def _note(here: Candidate | None, remote: str) -> str | None:
    if here is None:
        return f"{remote} does not have it any more"
    marks = {"yanked": here.yanked, "deprecated": here.deprecated}
    return "; ".join(f"{mark}: {reason}" for mark, reason in marks.items() if reason is not None) or None


@contextmanager
def _resolved(project: Project, sources: Sources, lock: Lock | None, threads: int | None) -> Generator[Resolution]:
    """The recipe resolved; candidates can be looked at as long as the base is open."""
    with closing(Base.of(project.recipe, project.directory)) as base:
        yield resolve(
            project.recipe,
            sources,
            directory=project.directory,
            base=base,
            lock=lock,
            called=project.name,
            threads=threads,
        )


def _wishes(found: Resolution, name: str) -> Iterator[Wish]:
    yield from (wish for wish in found.wishes if wish.repository == name)
    for choice in found.choices:
        for one in choice.details.requires:
            if one.reference == name:
                yield required_wish(one, choice.candidate, found.pool.sources)
