"""From a recipe, or from a lock alone, to a checkpoint: resolve, check, lock, fetch, apply."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

import deltareg
from deltareg.apply import ApplyReport, apply
from deltareg.apply.apply import DTYPES
from deltareg.apply.card import Labels
from deltareg.apply.limits import limits_for, resident_memory
from deltareg.apply.placement import WeightedDelta
from deltareg.apply.plan import Merge
from deltareg.apply.prepare import Prepared, prepare
from deltareg.apply.ranks import ALONE, Ranks
from deltareg.apply.report import settings_of
from deltareg.build.digests import file_digests, output_digest
from deltareg.build.fetch import Fetch, check_locked, fetch, fetches
from deltareg.build.locking import base_digest, check_signed, keep_lock, lock_of
from deltareg.build.project import Project
from deltareg.build.settings import own_schedules, parameter_schedules, weight_schedule
from deltareg.checkpoint import Checkpoint
from deltareg.checkpoint.bucket import is_bucket
from deltareg.checkpoint.output import check_output
from deltareg.errors import (
    BadLock,
    DeltaregError,
    DigestMismatch,
    InvalidArgument,
    NotHomologous,
    OutputDiffers,
    UnsupportedFormat,
)
from deltareg.fingerprint import fingerprint_of
from deltareg.licences import refuse_conflicts
from deltareg.lock import LOCK_NAME, Lock, LockedDelta, LockedOutput, lock_bytes, write_lock
from deltareg.manifest import Document
from deltareg.merge import Schedule
from deltareg.progress import SILENT, Progress
from deltareg.resolve import Sources, resolve
from deltareg.resolve.resolve import Base, location_in
from deltareg.threads import thread_count

__all__ = [
    "BuildReport",
    "BuiltDelta",
    "Options",
    "build",
    "check_base",
    "check_tensors",
    "pinned",
    "prepared",
    "rebuild",
    "weights_and_parameters",
]

_SHOWN = 6


class BuiltDelta(Document):
    """One delta of a build."""

    reference: str
    digest: str
    remote: str
    weight: float | str = Field(description="weight, or the rules of weights as text")
    settings: dict[str, float | bool | str] = Field(description="parameters of the method for this delta alone")
    required_by: list[str] = Field(description="deltas that require it; empty where the recipe alone asks for it")
    fetched_bytes: int = Field(description="bytes that came from the remote, or would come")


class BuildReport(Document):
    """What was built, or would be."""

    out: str
    lock: str
    locked: str = Field(description="written, kept (it was current), or given (a rebuild)")
    base: str
    method: str
    deltas: list[BuiltDelta]
    fetch_bytes: int = Field(description="bytes to fetch, or fetched")
    read_bytes: int = Field(description="bytes of the base and of the deltas")
    write_bytes: int = Field(description="bytes of the output's tensors")
    memory: int = Field(description="bytes held at most: expected of a dry run, else measured")
    expected_seconds: float | None = Field(
        default=None, description="of a dry run whose deltas are on this machine: seconds of reading and computing"
    )
    output: str | None = Field(
        default=None, description="digest of the output; null of a dry run, and in an object store"
    )
    reproduced: bool | None = Field(
        default=None, description="the output has the digest that the lock holds; null where the lock held none"
    )
    warnings: list[str] = Field(description="what the user should know")
    seconds: float
    dry_run: bool


@dataclass(frozen=True)
class Options:
    """How a build is done; the output does not depend on it."""

    overwrite: bool = False
    resume: bool = False
    force: bool = False
    accept_licence: bool = False
    memory: int | None = None
    threads: int | None = None
    device: str = "cpu"
    ranks: Ranks = ALONE
    dry_run: bool = False
    progress: Progress = SILENT


def build(
    project: Project,
    sources: Sources,
    out: str | os.PathLike[str],
    *,
    locked: bool = False,
    options: Options | None = None,
) -> BuildReport:
    """Build what the recipe says as the checkpoint `out`.

    Where the lock is current it is followed. Else the recipe is resolved, and the lock written; with `locked` that is
    an error, LockStale. Nothing is fetched before everything is known to fit. The output carries the lock, and the lock
    is told the output's digest. Raises NothingFits, NotHomologous, LicenceRefused, OutputExists, RemoteUnavailable,
    DigestMismatch, OutputDiffers, SignatureMissing, SignatureUntrusted, SignatureInvalid and what else `apply` raises.
    """
    how = options or Options()
    started = time.monotonic()
    lock = project.lock_if_any()
    if lock is not None and lock.recipe == project.recipe.digest:
        return _build(lock, project, sources, out, how, started, wrote=False, warnings=[])
    if locked:
        project.current_lock()  # which says what is wrong with it
    with closing(Base.of(project.recipe, project.directory)) as base:
        if base.checkpoint is None:
            raise _needs_a_base(project)
        check_output(out, how.overwrite)
        found = resolve(
            project.recipe,
            sources,
            directory=project.directory,
            base=base,
            lock=lock,
            called=project.name,
            threads=how.threads,
        )
        digest = base_digest(base.checkpoint, how.threads, how.progress)
    lock = lock_of(found, digest, lock, check_signed(found))
    return _build(lock, project, sources, out, how, started, wrote=True, warnings=list(found.warnings))


def rebuild(
    project: Project,
    sources: Sources,
    out: str | os.PathLike[str],
    *,
    base: str | None = None,
    options: Options | None = None,
) -> BuildReport:
    """Build what the lock says, whatever the recipe says by now; `base` is where the base lies, if not where it was.

    Raises OutputDiffers, and makes nothing visible, where the output has another digest than the lock holds.
    """
    how = options or Options()
    started = time.monotonic()
    lock = project.lock()
    warnings: list[str] = []
    if project.recipe_path.exists() and project.recipe.digest != lock.recipe:
        warnings.append(f"{project.name} has changed since the lock was written; this builds the lock")
    return _build(lock, project, sources, out, how, started, wrote=None, warnings=warnings, base=base)


def _build(
    lock: Lock,
    project: Project,
    sources: Sources,
    out: str | os.PathLike[str],
    how: Options,
    started: float,
    *,
    wrote: bool | None,
    warnings: list[str],
    base: str | None = None,
) -> BuildReport:
    if base is None and lock.base.location.startswith("sha256:"):
        raise _needs_a_base(project)
    place = base or location_in(lock.base.location, project.directory)
    check_output(out, how.overwrite)
    with ExitStack() as stack:
        checkpoint = stack.enter_context(Checkpoint.open(pinned(place, lock, base)))
        check_base(lock, checkpoint)
        # Before anything else is asked for; what the lock was written from may have been trusted then, and not now.
        for one in lock.deltas:
            check_locked(one, sources)
        wanted = fetches(lock, sources)
        warnings += [warning for one in wanted for warning in one.warnings]
        job = prepared(lock, checkpoint, wanted, how)
        refuse_conflicts(job.licence, accept=_accepts(lock, how))
        if not wrote and not how.dry_run and not _output_tells(lock, out):
            check_tensors(lock, checkpoint, how)
        if wrote and not how.dry_run:
            lock = keep_lock(lock, project)
        if not how.dry_run:
            fetch(wanted, sources, how.threads, how.progress)
        sealing = _Sealing(lock, how)
        report = None
        if not how.dry_run or not any(one.absent for one in wanted):
            report = _applied(lock, checkpoint, sources, out, how, sealing)
    if sealing.output is not None and lock.output is None and how.ranks.number == 0:
        warnings += _remember(lock, sealing.output, project)
    return _report(lock, project, out, how, started, wrote, warnings, wanted, job, report, sealing)


def prepared(lock: Lock, checkpoint: Checkpoint, wanted: Sequence[Fetch], how: Options) -> Prepared:
    """Everything that can be wrong with what is applied is found here, from documents alone."""
    merge = Merge.of(lock.method, parameter_schedules(lock.method, lock.parameters), lock.seed)
    deltas = [WeightedDelta(one.locked.name, one.artifact, *weights_and_parameters(lock, one.locked)) for one in wanted]
    return prepare(
        checkpoint,
        deltas,
        merge,
        lock.side_files,
        thread_count(how.threads),
        with_added=lock.with_added,
        force=how.force,
        dtype=None if lock.dtype is None else DTYPES[lock.dtype],
        labels=_labels(lock),
    )


def weights_and_parameters(lock: Lock, delta: LockedDelta) -> tuple[Schedule, dict[str, Schedule]]:
    """What a lock gives one of its deltas. Raises InvalidArgument."""
    own = own_schedules(lock.method, delta.name, delta.parameters)
    return weight_schedule(delta.weight, delta.where), own


def _accepts(lock: Lock, how: Options) -> bool:
    return lock.accept_licence or how.accept_licence


def _labels(lock: Lock) -> Labels:
    """The same on every machine, wherever the base lies, and for every version of deltareg: the lock tells that."""
    maker = "deltareg, from the lock beside this file"
    return Labels(title=lock.name, base=lock.base.id, revision=lock.base.revision, maker=maker)


def _applied(
    lock: Lock,
    checkpoint: Checkpoint,
    sources: Sources,
    out: str | os.PathLike[str],
    how: Options,
    sealing: _Sealing,
) -> ApplyReport:
    return apply(
        checkpoint,
        [(one.name, *weights_and_parameters(lock, one)) for one in lock.deltas],
        sources.registry,
        out,
        method=lock.method,
        parameters=parameter_schedules(lock.method, lock.parameters),
        seed=lock.seed,
        side_files=lock.side_files,
        with_added=lock.with_added,
        dtype=lock.dtype,
        force=how.force,
        accept_licence=_accepts(lock, how),
        overwrite=how.overwrite,
        resume=how.resume,
        memory=how.memory,
        threads=how.threads,
        ranks=how.ranks,
        device=how.device,
        dry_run=how.dry_run,
        labels=_labels(lock),
        seal=sealing,
        progress=how.progress,
    )


class _Sealing:
    """Puts the lock into an output, with the digests of all other files; refuses one that is not what the lock says."""

    def __init__(self, lock: Lock, how: Options) -> None:
        self.output: LockedOutput | None = None
        self._lock = lock
        self._how = how

    def __call__(self, directory: Path | None, names: Sequence[str]) -> Mapping[str, bytes]:
        if directory is None:  # what has been sent to an object store is not read again
            return {LOCK_NAME: lock_bytes(self._lock.model_copy(update={"output": None}))}
        files = file_digests(directory, names, thread_count(self._how.threads), self._how.progress)
        sizes = {name: (directory / name).stat().st_size for name in names}
        digest = output_digest({name: (sizes[name], files[name]) for name in names})
        self.output = LockedOutput(digest=digest, files=dict(sorted(files.items())))
        before = self._lock.output
        if before is not None and before.digest != digest:
            raise _differs(self._lock, before, self.output)
        return {LOCK_NAME: lock_bytes(self._lock.model_copy(update={"output": self.output}))}


def _differs(lock: Lock, before: LockedOutput, now: LockedOutput) -> OutputDiffers:
    names = sorted(
        name for name in before.files.keys() | now.files.keys() if before.files.get(name) != now.files.get(name)
    )
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    ours = f"deltareg {deltareg.__version__}"
    made = f"; the lock was made by {lock.producer}, this is {ours}" if lock.producer != ours else ""
    return OutputDiffers(
        f"the output is not what the lock says: {shown} differ{'s' if len(names) == 1 else ''}",
        cause=f"it has the digest {now.digest}, the lock {before.digest}{made}",
        hint=f"nothing was written; is the base at {lock.base.location} the one that was locked?",
        files=names,
    )


def check_base(lock: Lock, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint of another shape than the lock's base. Raises NotHomologous."""
    found = fingerprint_of(checkpoint)
    if found.digest != lock.base.fingerprint:
        raise NotHomologous(
            f"{checkpoint.id} is not the base of the lock: its fingerprint is {found.digest}",
            cause=f"the lock was made for {lock.base.location} with the fingerprint {lock.base.fingerprint}",
            hint="name the right base, or lock anew: deltareg lock",
        )


def _remember(lock: Lock, output: LockedOutput, project: Project) -> Iterable[str]:
    """Tell the lock what was built, unless it is another one by now: a build takes long."""
    name = project.lock_path.name
    try:
        now = project.lock_if_any()
        if now is None or now.meaning != lock.meaning:
            yield f"{name} was changed during the build, and is not told what came out"
        elif now.output is None:
            write_lock(now.model_copy(update={"output": output}), project.lock_path)
        elif now.output.digest != output.digest:
            yield f"{name} was told of another output during the build, {now.output.digest}, and keeps that"
    except (BadLock, UnsupportedFormat):
        yield f"{name} was changed during the build, and is not told what came out"
    except DeltaregError as error:  # a recipe that others look after, or a full disk: OUT is there all the same
        yield f"{name} is not told what came out: {error.message}"


def _output_tells(lock: Lock, out: str | os.PathLike[str]) -> bool:
    """Whether another base would be told by what comes out, so that it need not be read for that alone."""
    return lock.output is not None and not is_bucket(out)


def check_tensors(lock: Lock, checkpoint: Checkpoint, how: Options) -> None:
    """Refuse other tensors of the same shapes: nothing would tell them from those that were locked."""
    found = None if lock.base.digest is None else base_digest(checkpoint, how.threads, how.progress)
    if found not in (None, lock.base.digest):
        raise DigestMismatch(
            f"{checkpoint.id} is not the base of the lock: its tensors have the digest {found}",
            cause=f"the lock was made for {lock.base.location} with the digest {lock.base.digest}",
            hint="name the right base, or lock anew: deltareg lock",
            digest=lock.base.digest,
            found=found,
        )


def pinned(place: str, lock: Lock, given: str | None) -> str:
    """A model of the hub at the commit that was locked."""
    if given is None and lock.base.revision is not None and place.startswith("hf://"):
        return f"{place.partition('@')[0]}@{lock.base.revision}"
    return place


def _needs_a_base(project: Project) -> InvalidArgument:
    return InvalidArgument(
        f"{project.name} knows only the fingerprint of its base, which is enough to lock and too little to build",
        hint="write base = a path or hf://org/name in it, or name one: deltareg apply --locked TARGET -o OUT",
    )


def _report(
    lock: Lock,
    project: Project,
    out: str | os.PathLike[str],
    how: Options,
    started: float,
    wrote: bool | None,
    warnings: list[str],
    wanted: Sequence[Fetch],
    job: Prepared,
    applied: ApplyReport | None,
    sealing: _Sealing,
) -> BuildReport:
    if applied is not None:
        warnings += [*(f"forced: {one}" for one in applied.overridden), *applied.remedies, *applied.warnings]
        memory = applied.peak_memory or applied.expected_memory
    else:
        _, memory = limits_for(job.plan, thread_count(how.threads), how.memory, resident_memory(), out)
    target = sum(tensor.source.nbytes for tensor in job.plan.tensors.values() if tensor.source is not None)
    return BuildReport(
        out=str(out),
        lock=str(project.lock_path),
        locked="given" if wrote is None else "written" if wrote else "kept",
        base=lock.base.location,
        method=lock.method,
        deltas=[
            BuiltDelta(
                reference=one.locked.reference,
                digest=one.locked.digest,
                remote=one.locked.remote,
                weight=delta.weights.plain,
                settings=settings_of(delta.parameters),
                required_by=one.locked.required_by,
                fetched_bytes=one.bytes,
            )
            for one, delta in zip(wanted, job.wanted, strict=True)
        ],
        fetch_bytes=sum(one.bytes for one in wanted),
        read_bytes=target + sum(pack.size for one in wanted for pack in one.artifact.packs),
        write_bytes=job.plan.nbytes if applied is None else applied.output_bytes,
        memory=memory,
        expected_seconds=None if applied is None else applied.expected_seconds,
        output=None if sealing.output is None else sealing.output.digest,
        reproduced=None if sealing.output is None or lock.output is None else True,
        warnings=list(dict.fromkeys(warnings)),
        seconds=time.monotonic() - started,
        dry_run=how.dry_run,
    )
