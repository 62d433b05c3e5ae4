"""Applying deltas to a target."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import deltareg
from deltareg.apply.card import card, config_json
from deltareg.apply.estimate import expected_seconds
from deltareg.apply.limits import Limits, limits_for, peak_memory, resident_memory
from deltareg.apply.loops import load_loops
from deltareg.apply.placement import Placement, WeightedDelta, place
from deltareg.apply.plan import Merge, Plan, plan, refuse_stacked
from deltareg.apply.ranks import ALONE, Ranks, share
from deltareg.apply.run import NOTHING, Outcome, Share, run
from deltareg.apply.side_files import SideFiles, side_files
from deltareg.catalog import Registry
from deltareg.check import Fit, fit
from deltareg.checkpoint import Checkpoint, CheckpointWriter, Job, Member
from deltareg.checkpoint.staging import check_free
from deltareg.digest import canonical_json, sha256
from deltareg.errors import BadHeader, BadRecord, DigestMismatch, InvalidArgument, NotHomologous, OutputExists
from deltareg.homology import first_of
from deltareg.manifest import Document
from deltareg.merge import Gradient, Schedule, Value, refuse_unmatched
from deltareg.names import Reference
from deltareg.progress import SILENT, Progress
from deltareg.threads import thread_count

__all__ = [
    "AppliedDelta",
    "ApplyReport",
    "SideFiles",
    "Weight",
    "apply",
    "checked_weight",
    "open_delta",
    "refuse_errors",
]

Weight = float | Gradient | Schedule
"""A delta's weight: one number, or what differs by tensor."""

# A finding that says how far a shape is from another may come once for each tensor.
_MOST_TOLD = 200
# Hashing what is written costs a twentieth of the time. What is smaller is done again sooner than it is read again.
_WORTH_A_JOURNAL = 4 * 2**30


class AppliedDelta(Document):
    """One delta of an apply: its name, the digest of its manifest, its weight.

    Where the weight differs by tensor it is given as the rules that say so: `0.2..0.8, attention: 0.3`.
    """

    reference: str
    digest: str
    weight: float | str


class ApplyReport(Document):
    """What `apply` did.

    `settings` are all parameters of the method, given or by default, those that differ by tensor as the rules that say
    so; `seed` is that of its random masks, null for a method that draws none. `remedies` are the differences between a
    delta and the target that were dealt with, `overridden` the findings that would have stopped it but for `force`.
    `target_bytes` and `delta_bytes` are read, `output_bytes` written, or would be. `expected_memory` is about what is
    held at most, `peak_memory` what the process has held at most, in bytes, all of the interpreter and its libraries
    included; null in a dry run. `resumed_tensors` were finished by a run that was killed. `seconds` is all of it,
    `load_seconds` the part in which compiled loops were loaded (compiled, on a machine's first use), `sync_seconds`
    that in which the disk was waited for. `expected_seconds` is what a dry run finds, without the disk;
    `bytes_per_second` is of the output, all but the loading of loops counted.
    """

    out: str
    target: str
    method: str
    settings: dict[str, float | bool | str]
    seed: int | None
    deltas: list[AppliedDelta]
    tensors: int
    parameters: int
    target_bytes: int
    delta_bytes: int
    output_bytes: int
    bytes_written: int
    copied_tensors: int
    added_tensors: int
    removed_tensors: int
    resumed_tensors: int
    overwritten: int
    skipped_overwrites: int
    side_files: list[str]
    remedies: list[str]
    overridden: list[str]
    warnings: list[str]
    threads: int
    ranks: int
    expected_memory: int
    peak_memory: int | None
    expected_seconds: float | None
    seconds: float
    load_seconds: float
    sync_seconds: float
    bytes_per_second: float | None
    dry_run: bool


def apply(
    target: Checkpoint | str | os.PathLike[str],
    deltas: Mapping[str, Weight] | Sequence[tuple[str | Reference, Weight]],
    registry: Registry,
    out: str | os.PathLike[str],
    *,
    method: str = "linear",
    parameters: Mapping[str, Value | Gradient | Schedule] | None = None,
    seed: int = 0,
    side_files: SideFiles = "post",
    with_added: bool | None = None,
    force: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    memory: int | None = None,
    threads: int | None = None,
    ranks: Ranks = ALONE,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> ApplyReport:
    """Write the target with deltas merged into it as the checkpoint `out`: by default target + Σ weight · delta.

    `deltas` are names in `registry` with their weights; a weight of 0 leaves the delta out. `method` is one of
    `deltareg.merge.METHODS`, `parameters` are its own; weights and parameters are numbers, a `Gradient` along the
    layers, or a `Schedule` of both by module classes and patterns of tensor names. `seed` starts the random masks of
    the methods that have such. The output appears whole or not at all.

    Each delta is checked first, as `deltareg.check` does. What is incompatible is refused unless `force` is given; what
    is adaptable is adapted, and the model card says how. `with_added` takes tensors that only post has, or leaves them
    out; None takes them where the target is the delta's own base. `side_files` says whose tokenizer, chat template and
    generation config the output gets: "post", those that came with the first delta, or "target".

    With `resume` what a killed run of the same call has finished is taken over, once its bytes were read again and
    found right, and what this one has finished stays should it fail. `memory` bounds the bytes that are held, those of
    the interpreter and its libraries included. `ranks` are the processes that share the work: each makes this same
    call, and each gets the same report.

    Raises NotHomologous, NotFound, OutputExists, InvalidArgument, DigestMismatch, BadRecord, DiskFull, RankLost.
    """
    started = time.monotonic()
    weighted = _weighted(deltas)
    merge = Merge.of(method, parameters, seed)
    if side_files not in ("post", "target"):
        raise InvalidArgument(f"unknown side files {side_files!r}", hint="side files are those of: post, target")
    count = thread_count(threads)
    with ExitStack() as stack:
        stack.enter_context(_told_to(ranks))
        checkpoint = target if isinstance(target, Checkpoint) else stack.enter_context(Checkpoint.open(target))
        _refuse_input(checkpoint, Path(out))
        wanted = [open_delta(registry, reference, weights) for reference, weights in weighted]
        job = _prepare(checkpoint, wanted, merge, side_files, count, with_added=with_added, force=force)
        written = _Written()
        expected = None
        if dry_run:
            check_free(Path(out), overwrite)
            limits, held = limits_for(job.plan, count, memory, resident_memory())
            expected = expected_seconds(job.plan, job.active, registry.store, limits)
        else:
            before = time.monotonic()
            load_loops(job.plan)
            loaded = time.monotonic() - before
            limits, held = limits_for(job.plan, count, memory, resident_memory())
            resumption = None
            if resume or job.plan.nbytes >= _WORTH_A_JOURNAL:
                resumption = Job(_digest(job, with_added=with_added, force=force), resume)
            written = _write(job, Path(out), registry, limits, ranks, resumption, progress, overwrite=overwrite)
            written = replace(written, load_seconds=loaded)
        return _report(job, out, limits.threads, held, written, expected, ranks.count, time.monotonic() - started)


@dataclass(frozen=True)
class _Prepared:
    """Everything that is decided before a byte is written."""

    target: Checkpoint
    wanted: list[WeightedDelta]
    active: list[WeightedDelta]
    merge: Merge
    fits: list[Fit]
    overridden: list[str]
    placement: Placement
    plan: Plan
    files: dict[str, bytes]


@dataclass(frozen=True)
class _Written:
    """What the writing came to."""

    outcome: Outcome = NOTHING
    nbytes: int = 0
    resumed: int = 0
    load_seconds: float = 0.0
    sync_seconds: float = 0.0
    peak_memory: int | None = None


def _weighted(
    deltas: Mapping[str, Weight] | Sequence[tuple[str | Reference, Weight]],
) -> list[tuple[str | Reference, Schedule]]:
    pairs = list(deltas.items()) if isinstance(deltas, Mapping) else list(deltas)
    if not pairs:
        raise InvalidArgument("no delta was named", hint="deltareg apply TARGET namespace/name:1.2.3=0.5 -o OUT")
    return [(reference, checked_weight(weight, f"the weight of {reference}")) for reference, weight in pairs]


@contextmanager
def _told_to(ranks: Ranks) -> Generator[None]:
    """Let the other ranks hear of what ends this one."""
    try:
        yield
    except BaseException as error:
        ranks.fail(error)
        raise


def _prepare(
    target: Checkpoint,
    wanted: list[WeightedDelta],
    merge: Merge,
    side_files: SideFiles,
    threads: int,
    *,
    with_added: bool | None,
    force: bool,
) -> _Prepared:
    active = [delta for delta in wanted if any(delta.weights.values)]
    if active:
        merge.method.check_deltas(len(active))
    fits = fit(target, [(delta.reference, delta.artifact) for delta in active], threads=threads, lenient=True)
    overridden = refuse_errors(fits, target, force=force)
    placement = place(target, active, fits, with_added=with_added)
    planned = plan(target, active, placement, merge)
    refuse_unmatched([*(delta.weights for delta in wanted), *merge.parameters.values()], planned.subjects.values())
    files = _files(target, active, side_files, planned, placement, fits)
    return _Prepared(target, wanted, active, merge, fits, overridden, placement, planned, files)


def _digest(job: _Prepared, *, with_added: bool | None, force: bool) -> str:
    """What decides the bytes of the output: where all of it is the same, a run can go on where another was killed."""
    return sha256(
        canonical_json(
            {
                "producer": f"deltareg {deltareg.__version__}",
                "target": [job.target.id, job.target.revision, job.target.stamps],
                "deltas": [[str(one.reference), one.artifact.digest, str(one.weights)] for one in job.wanted],
                "method": [job.merge.method.name, {name: str(one) for name, one in job.merge.told().items()}],
                "seed": str(job.merge.seed),
                "policy": [with_added, force, job.placement.separate],
                "files": {name: sha256(data) for name, data in job.files.items()},
                "shards": [[shard.file, shard.tensors, dict(shard.metadata)] for shard in job.plan.shards],
            }
        )
    )


def _write(
    job: _Prepared,
    out: Path,
    registry: Registry,
    limits: Limits,
    ranks: Ranks,
    resumption: Job | None,
    progress: Progress,
    *,
    overwrite: bool,
) -> _Written:
    """Do what was planned; of several ranks each its share, and the first what is left."""
    own = share(job.plan, ranks.count)[ranks.number]
    with ExitStack() as stack:
        writer = stack.enter_context(_writer(job, out, ranks, own, resumption, overwrite=overwrite))
        done = writer.recover(_recoverable(job.plan, own), limits.threads)
        part = Share(own - done, own, ranks)
        try:
            outcome = run(
                job.plan,
                job.active,
                registry.store,
                writer,
                limits=limits,
                progress=progress,
                part=part,
                verified=writer.vouch,
            )
        except (DigestMismatch, BadHeader, BadRecord):
            writer.discard()  # nothing that was made of damaged input is gone on with
            raise
        before = time.monotonic()
        if ranks.count > 1:
            writer.sync()
        outcome = sum(ranks.each(outcome), NOTHING)
        if ranks.number == 0:
            _finish(job, writer, outcome)
        for _ in ranks.each(None):
            pass
        resumed = sum(ranks.each(len(done)))
        return _Written(outcome, job.plan.nbytes, resumed, 0.0, time.monotonic() - before, peak_memory())


def _writer(
    job: _Prepared, out: Path, ranks: Ranks, own: frozenset[str], resumption: Job | None, *, overwrite: bool
) -> CheckpointWriter:
    if ranks.count == 1:
        return CheckpointWriter(out, job.plan.shards, overwrite=overwrite, job=resumption)
    if ranks.number == 0:
        leader = Member(0, own)
        writer = CheckpointWriter(out, job.plan.shards, overwrite=overwrite, job=resumption, member=leader)
        try:
            for _ in ranks.each(str(writer.staging)):
                pass
        except BaseException:
            writer.close()
            raise
        return writer
    staging = next(iter(list(ranks.each(None))))
    member = Member(ranks.number, own, Path(staging))
    return CheckpointWriter(out, job.plan.shards, overwrite=overwrite, job=resumption, member=member)


def _recoverable(planned: Plan, own: frozenset[str]) -> list[str]:
    """The tensors that may be taken over: of those with overwrites the report must tell, so that they are done anew."""
    return [
        name
        for name, tensor in planned.tensors.items()
        if name in own and not any(piece.entry.overwritten for piece in tensor.pieces)
    ]


def _finish(job: _Prepared, writer: CheckpointWriter, outcome: Outcome) -> None:
    """Add the files beside the weights, and make all of it visible."""
    for name, data in job.files.items():
        writer.add_file(name, data)
    notes = _notes(job.target, job.wanted, job.plan, outcome, job.fits)
    told = {"Remedies": job.placement.remedies, "Overridden findings": job.overridden, "Notes": notes}
    writer.add_file("README.md", card(job.target, job.wanted, job.merge, told))
    writer.commit()


def _report(
    job: _Prepared,
    out: str | os.PathLike[str],
    threads: int,
    held: int,
    written: _Written,
    expected: float | None,
    ranks: int,
    seconds: float,
) -> ApplyReport:
    tensors = job.plan.tensors.values()
    return ApplyReport(
        out=str(out),
        target=job.target.id,
        method=job.merge.method.name,
        settings={name: schedule.plain for name, schedule in job.merge.told().items()},
        seed=job.merge.seed if job.merge.method.random else None,
        deltas=[
            AppliedDelta(reference=str(delta.reference), digest=delta.artifact.digest, weight=delta.weights.plain)
            for delta in job.wanted
        ],
        tensors=len(tensors),
        parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        target_bytes=sum(tensor.source.nbytes for tensor in tensors if tensor.source is not None),
        delta_bytes=sum(pack.size for delta in job.active for pack in delta.artifact.packs),
        output_bytes=job.plan.nbytes,
        bytes_written=written.nbytes,
        copied_tensors=sum(tensor.action == "copy" for tensor in tensors),
        added_tensors=sum(tensor.source is None for tensor in tensors),
        removed_tensors=len(job.plan.removed),
        resumed_tensors=written.resumed,
        overwritten=written.outcome.overwritten,
        skipped_overwrites=written.outcome.skipped,
        side_files=sorted(job.files),
        remedies=list(job.placement.remedies),
        overridden=job.overridden,
        warnings=_notes(job.target, job.wanted, job.plan, written.outcome, job.fits),
        threads=threads,
        ranks=ranks,
        expected_memory=held,
        peak_memory=written.peak_memory,
        expected_seconds=expected,
        seconds=seconds,
        load_seconds=written.load_seconds,
        sync_seconds=written.sync_seconds,
        bytes_per_second=written.nbytes / max(seconds - written.load_seconds, 1e-9) if written.nbytes else None,
        dry_run=written.peak_memory is None,
    )


def checked_weight(weight: Weight, what: str = "the weight") -> Schedule:
    """The rules of a weight, its numbers as floats. Raises InvalidArgument, which calls it `what`."""
    schedule = Schedule.of(weight)
    for value in schedule.values:
        # Beyond float32 a weight of 16-bit deltas would be infinite.
        if isinstance(value, str) or not math.isfinite(value) or abs(value) > 3.4e38:
            raise InvalidArgument(f"{what} is {value!r}", hint="a weight is a finite number of at most 3.4e38")
    return Schedule(
        tuple((selector, value if isinstance(value, Gradient) else float(value)) for selector, value in schedule.rules)
    )


def _refuse_input(target: Checkpoint, out: Path) -> None:
    place = out.resolve()
    root = target.root.resolve()
    if place in (target.path.resolve(), root, *root.parents):
        raise OutputExists(f"{out} is the target itself, or holds it", hint="choose another -o", path=out)


def open_delta(registry: Registry, reference: str | Reference, weights: Schedule) -> WeightedDelta:
    """A delta by its name, which becomes that of a version. Raises NotFound, UnsupportedFormat."""
    # The card says what was applied even after `latest` has moved on.
    version = registry.version_of(reference)
    artifact = registry.artifact(version)
    refuse_stacked(artifact, version)
    return WeightedDelta(version, artifact, weights)


def refuse_errors(fits: Sequence[Fit], target: Checkpoint, *, force: bool) -> list[str]:
    """Raise NotHomologous where a delta is incompatible; with `force` returns the findings that say so instead."""
    errors = [(one.checked, found) for one in fits for found in one.checked.findings if found.severity == "error"]
    if not errors:
        return []
    if force:
        told = [f"{delta.reference}: {found.code}: {found}" for delta, found in errors]
        return told[:_MOST_TOLD] + ([f"and {len(told) - _MOST_TOLD} more"] if len(told) > _MOST_TOLD else [])
    first = errors[0][0]
    shown = first_of([found for _, found in errors])
    codes = ", ".join(dict.fromkeys(found.code for _, found in errors))
    raise NotHomologous(
        f"{first.reference} does not fit {target.id}; the delta's base against the target: {shown}",
        cause=f"{len(errors)} difference{'s' if len(errors) > 1 else ''} that no remedy bridges: {codes}",
        hint=f"deltareg check {first.reference} --base {target.id} tells more; --force applies it all the same",
        findings=[
            {
                "reference": delta.reference,
                "code": found.code,
                "subject": found.subject,
                "delta": found.delta,
                "target": found.target,
            }
            for delta, found in errors
        ],
    )


def _files(
    target: Checkpoint,
    deltas: Sequence[WeightedDelta],
    choice: SideFiles,
    planned: Plan,
    placement: Placement,
    fits: Sequence[Fit],
) -> dict[str, bytes]:
    """The files beside the weights, by relative path."""
    files = side_files(target, deltas, choice, [one.moved for one in fits])
    config = config_json(target, planned, separate=placement.separate)
    if config is not None:
        files["config.json"] = config
    return files


def _notes(
    target: Checkpoint, deltas: Sequence[WeightedDelta], planned: Plan, outcome: Outcome, fits: Sequence[Fit]
) -> list[str]:
    faults = dict.fromkeys(fault for one in fits for fault in one.faults)
    notes = [*planned.warnings, *(f"tokens were not compared: {fault}" for fault in faults)]
    if target.dequantised:
        notes.append(f"{target.dequantised} tensors of scaled 8-bit floats in the target are bfloat16 in the output")
    counts = Counter(delta.artifact.digest for delta in deltas)
    notes.extend(
        f"{delta.reference} is named more than once: the weights of one delta add up"
        for delta in {delta.artifact.digest: delta for delta in deltas}.values()
        if counts[delta.artifact.digest] > 1
    )
    if planned.removed:
        notes.append(f"left out, as in post: {', '.join(planned.removed)}")
    if outcome.skipped:
        count = f"{outcome.skipped} elements" if outcome.skipped > 1 else "1 element"
        notes.append(
            f"{count} of post that no sum can give (NaN, Inf, −0.0), not taken over: "
            "that is done on the delta's own base, alone and at weight 1"
        )
    return notes
