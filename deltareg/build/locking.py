"""Locking a recipe: resolve it, and write down what was found."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from typing import Literal

from pydantic import Field

import deltareg
from deltareg.apply.plan import Merge
from deltareg.build.project import Project
from deltareg.build.settings import (
    own_schedules,
    own_settings,
    parameter_schedules,
    parameter_settings,
    weight_schedule,
)
from deltareg.checkpoint import Checkpoint
from deltareg.describe import digest_of
from deltareg.errors import BadLock, LockStale, UnsupportedFormat
from deltareg.lock import Lock, LockedDelta, LockedSignature, write_lock
from deltareg.manifest import Document
from deltareg.merge import refuse_unmatched, subjects_of
from deltareg.names import Reference, version_key
from deltareg.progress import SILENT, Progress
from deltareg.resolve import Candidate, Resolution, Sources, resolve
from deltareg.resolve.resolve import Base
from deltareg.signing import Verified, record
from deltareg.threads import thread_count

__all__ = ["Change", "LockReport", "base_digest", "changes", "keep_lock", "lock", "lock_of"]


class Change(Document):
    """What became of one delta in a lock."""

    reference: str = Field(description="namespace/name")
    before: str | None = Field(default=None, description="version that the lock had")
    after: str | None = Field(default=None, description="version that it has")
    change: Literal["added", "removed", "updated", "downgraded", "kept"]


class LockReport(Document):
    """What a lock holds now."""

    lock: str = Field(description="its file")
    base: str = Field(description="where the base is, as the recipe says")
    deltas: list[Change]
    changed: bool = Field(description="whether the lock is another one than before")
    warnings: list[str] = Field(description="what the user should know")
    seconds: float
    dry_run: bool


def lock(
    project: Project,
    sources: Sources,
    *,
    update: Iterable[str] | None = (),
    allow_licence: Iterable[str] = (),
    exclude_newer: datetime | None = None,
    check: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> LockReport:
    """Resolve the recipe, and write what was found beside it.

    What the lock held before stays where it still fits, but for the names in `update`; None frees all. `allow_licence`
    and `exclude_newer` are for `resolve`. With `check` nothing is written, and LockStale is raised where the lock is
    not what the recipe means. Raises NothingFits and what else `resolve` raises; SignatureMissing, SignatureUntrusted
    and SignatureInvalid where a policy forbids a delta; InvalidArgument for parameters that the method does not have,
    and selectors that are for no tensor.
    """
    started = time.monotonic()
    warnings: list[str] = []
    try:
        before = project.current_lock() if check else project.lock_if_any()
    except (BadLock, UnsupportedFormat) as error:
        if check:
            raise
        warnings.append(f"{error.message}: it is written anew")
        before = None
    with closing(Base.of(project.recipe, project.directory)) as base:
        found = resolve(
            project.recipe,
            sources,
            directory=project.directory,
            base=base,
            lock=before,
            update=update,
            allow_licence=allow_licence,
            exclude_newer=exclude_newer,
            called=project.name,
            threads=threads,
        )
        verified = check_signed(found)
        _refuse_unmatched(found, base)
        digest = before.base.digest if check and before is not None else base_digest(base.checkpoint, threads, progress)
    after = lock_of(found, digest, before, verified)
    if check and before is not None and after.meaning != before.meaning:
        told = ", ".join(f"{one.reference} {one.change}" for one in changes(before, after) if one.change != "kept")
        raise LockStale(
            f"{project.lock_path} is not what {project.name} means now" + (f": {told}" if told else ""),
            hint="deltareg lock brings it up to date",
            path=project.lock_path,
        )
    changed = before is None or after != before
    if changed and not dry_run and not check:
        after = keep_lock(after, project)
    return LockReport(
        lock=str(project.lock_path),
        base=after.base.location,
        deltas=changes(before, after),
        changed=changed,
        warnings=[*warnings, *found.warnings],
        seconds=time.monotonic() - started,
        dry_run=dry_run,
    )


def check_signed(found: Resolution) -> dict[Reference, list[Verified]]:
    """The signatures that policies ask for, by version; the remotes are asked for theirs.

    Raises SignatureMissing, SignatureUntrusted, SignatureInvalid, SignersChanged.
    """
    sources = found.pool.sources
    candidates = [choice.candidate for choice in found.choices]
    return {one.reference: sources.check_signed(one.reference, one.digest, one.remote) for one in candidates}


def _refuse_unmatched(found: Resolution, base: Base) -> None:
    """Raise InvalidArgument where a selector is for no tensor, neither of the base nor of a delta."""
    build = found.recipe.build
    schedules = list(parameter_schedules(build.method, build.parameters).values())
    for choice in found.choices:
        schedules.append(weight_schedule(choice.weight, choice.where))
        schedules.extend(own_schedules(build.method, choice.candidate.reference, choice.parameters).values())
    if base.checkpoint is None or not any(schedule.selectors for schedule in schedules):
        return
    artifacts = [found.pool.sources.named(one.candidate.remote).artifact(one.candidate) for one in found.choices]
    names = [*base.checkpoint.tensors, *(entry.name for one in artifacts for entry in one.inventory.tensors)]
    refuse_unmatched(schedules, subjects_of(dict.fromkeys(names)).values())


def lock_of(
    found: Resolution, digest: str | None, before: Lock | None, verified: Mapping[Reference, Sequence[Verified]]
) -> Lock:
    """The lock of a resolution; `digest` is that of the base's tensors, `verified` are signatures of its deltas.

    The old one is kept where nothing changed.
    """
    build = found.recipe.build
    merge = Merge.of(build.method, parameter_schedules(build.method, build.parameters), build.seed)
    lock = Lock(
        producer=f"deltareg {deltareg.__version__}",
        recipe=found.recipe.digest,
        name=build.name,
        base=found.base.model_copy(update={"digest": digest}),
        method=build.method,
        parameters=parameter_settings(merge.told()),
        seed=build.seed,
        dtype=build.dtype,
        side_files=build.side_files,
        with_added=build.with_added,
        accept_licence=build.accept_licence,
        deltas=[
            LockedDelta(
                reference=str(choice.candidate.reference),
                digest=choice.candidate.digest,
                remote=choice.candidate.remote,
                wanted=choice.wanted,
                required_by=[by.repository for by in choice.required_by],
                weight=choice.weight,
                where=choice.where,
                parameters=own_settings(merge, choice.candidate.reference, choice.parameters),
                licence=choice.details.licence,
                exactness=choice.details.exactness,
                size=choice.details.size,
                signatures=record(verified.get(choice.candidate.reference, ()), _signatures(choice.candidate, before)),
            )
            for choice in found.choices
        ],
    )
    if before is not None and before.meaning == lock.meaning:
        return before if before.deltas == lock.deltas else before.model_copy(update={"deltas": lock.deltas})
    # What was built is still what would be built.
    output = before.output if before is not None and before.deciding == lock.deciding else None
    return lock if output is None else lock.model_copy(update={"output": output})


def _signatures(candidate: Candidate, before: Lock | None) -> list[LockedSignature]:
    """What a lock has of the signatures of these bytes."""
    old = None if before is None else before.delta(candidate.repository)
    return old.signatures if old is not None and old.digest == candidate.digest else []


def keep_lock(lock: Lock, project: Project) -> Lock:
    """Write a lock, unless somebody has written the same meanwhile: that one may know what was built.

    Returns the one that is there then. Raises DiskFull, NotAllowed.
    """
    try:
        now = project.lock_if_any()
    except (BadLock, UnsupportedFormat):
        now = None
    if now is not None and now.meaning == lock.meaning and lock.output in (None, now.output):
        if now.deltas == lock.deltas:
            return now
        lock = lock.model_copy(update={"output": now.output})
    write_lock(lock, project.lock_path)
    return lock


def changes(before: Lock | None, after: Lock) -> list[Change]:
    """What became of each delta."""
    old = {} if before is None else {one.name.repository: one for one in before.deltas}
    new = {one.name.repository: one for one in after.deltas}
    found: list[Change] = []
    for name in [*new, *(name for name in old if name not in new)]:
        was, now = old.get(name), new.get(name)
        versions = (None if was is None else str(was.name.tag), None if now is None else str(now.name.tag))
        change: Literal["added", "removed", "updated", "downgraded", "kept"] = "kept"
        if was is None or now is None:
            change = "added" if was is None else "removed"
        elif was.digest != now.digest:
            higher = version_key(str(now.name.tag)) > version_key(str(was.name.tag))
            change = "updated" if higher else "downgraded"
        found.append(Change(reference=name, before=versions[0], after=versions[1], change=change))
    return found


def base_digest(base: Checkpoint | None, threads: int | None, progress: Progress = SILENT) -> str | None:
    """The digest of a base's tensors, as deltas record it; None where it is not on this machine, or not known."""
    if base is None or not base.is_local:
        return None
    return digest_of(base, thread_count(threads), progress)
