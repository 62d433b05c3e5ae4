"""Applying deltas to a target."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from deltareg.apply.card import card, config_json
from deltareg.apply.loops import load_loops
from deltareg.apply.placement import Placement, WeightedDelta, place
from deltareg.apply.plan import Merge, Plan, plan, refuse_stacked
from deltareg.apply.run import Outcome, run
from deltareg.apply.side_files import SideFiles, side_files
from deltareg.catalog import Registry
from deltareg.check import Fit, fit
from deltareg.checkpoint import Checkpoint
from deltareg.checkpoint.output import check_output, open_writer, refuse_input
from deltareg.errors import InvalidArgument, NotHomologous
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
    `seconds` is all of it, `load_seconds` the part in which compiled loops were loaded (compiled, on a machine's first
    use), `sync_seconds` that in which the disk was waited for.
    """

    out: str
    target: str
    method: str
    settings: dict[str, float | bool | str]
    seed: int | None
    deltas: list[AppliedDelta]
    tensors: int
    parameters: int
    bytes_written: int
    copied_tensors: int
    added_tensors: int
    removed_tensors: int
    overwritten: int
    skipped_overwrites: int
    side_files: list[str]
    remedies: list[str]
    overridden: list[str]
    warnings: list[str]
    seconds: float
    load_seconds: float
    sync_seconds: float
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
    threads: int | None = None,
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

    Raises NotHomologous, NotFound, OutputExists, InvalidArgument, DigestMismatch, BadRecord, DiskFull.
    """
    started = time.monotonic()
    pairs = list(deltas.items()) if isinstance(deltas, Mapping) else list(deltas)
    if not pairs:
        raise InvalidArgument("no delta was named", hint="deltareg apply TARGET namespace/name:1.2.3=0.5 -o OUT")
    merge = Merge.of(method, parameters, seed)
    if side_files not in ("post", "target"):
        raise InvalidArgument(f"unknown side files {side_files!r}", hint="side files are those of: post, target")
    weighted = [(reference, checked_weight(weight, f"the weight of {reference}")) for reference, weight in pairs]
    with ExitStack() as stack:
        checkpoint = target if isinstance(target, Checkpoint) else stack.enter_context(Checkpoint.open(target))
        refuse_input(checkpoint, out)
        wanted = [open_delta(registry, reference, weights) for reference, weights in weighted]
        active = [delta for delta in wanted if any(delta.weights.values)]
        if active:
            merge.method.check_deltas(len(active))
        count = thread_count(threads)
        fits = fit(checkpoint, [(delta.reference, delta.artifact) for delta in active], threads=count, lenient=True)
        overridden = refuse_errors(fits, checkpoint, force=force)
        placement = place(checkpoint, active, fits, with_added=with_added)
        planned = plan(checkpoint, active, placement, merge)
        refuse_unmatched([*(delta.weights for delta in wanted), *merge.parameters.values()], planned.subjects.values())
        files = _files(checkpoint, active, side_files, planned, placement, fits)
        outcome, loaded, synced = Outcome(), 0.0, 0.0
        if dry_run:
            check_output(out, overwrite)
        else:
            before = time.monotonic()
            load_loops(planned)
            loaded = time.monotonic() - before
            writer = stack.enter_context(open_writer(out, planned.shards, overwrite=overwrite))
            outcome = run(planned, active, registry.store, writer, threads=count, progress=progress)
            for name, data in files.items():
                writer.add_file(name, data)
            notes = _notes(checkpoint, wanted, planned, outcome, fits)
            told = {"Remedies": placement.remedies, "Overridden findings": overridden, "Notes": notes}
            writer.add_file("README.md", card(checkpoint, wanted, merge, told))
            before = time.monotonic()
            writer.commit()
            synced = time.monotonic() - before
        return ApplyReport(
            out=str(out),
            target=checkpoint.id,
            method=method,
            settings={name: schedule.plain for name, schedule in merge.told().items()},
            seed=seed if merge.method.random else None,
            deltas=[
                AppliedDelta(reference=str(delta.reference), digest=delta.artifact.digest, weight=delta.weights.plain)
                for delta in wanted
            ],
            tensors=len(planned.tensors),
            parameters=sum(math.prod(tensor.shape) for tensor in planned.tensors.values()),
            bytes_written=0 if dry_run else planned.nbytes,
            copied_tensors=sum(tensor.action == "copy" for tensor in planned.tensors.values()),
            added_tensors=sum(tensor.source is None for tensor in planned.tensors.values()),
            removed_tensors=len(planned.removed),
            overwritten=outcome.overwritten,
            skipped_overwrites=outcome.skipped,
            side_files=sorted(files),
            remedies=list(placement.remedies),
            overridden=overridden,
            warnings=_notes(checkpoint, wanted, planned, outcome, fits),
            seconds=time.monotonic() - started,
            load_seconds=loaded,
            sync_seconds=synced,
            dry_run=dry_run,
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
