"""What `apply` tells of its work."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from deltareg.apply.prepare import Prepared
from deltareg.apply.ranks import largest_share
from deltareg.apply.write import Means, Written
from deltareg.manifest import Document
from deltareg.merge import Schedule

__all__ = ["AppliedDelta", "ApplyReport", "report_of", "settings_of"]


class AppliedDelta(Document):
    """One delta of an apply: its name, the digest of its manifest, its weight.

    Where the weight differs by tensor it is given as the rules that say so: `0.2..0.8, attention: 0.3`. `settings` are
    the parameters of the method that it has for itself.
    """

    reference: str
    digest: str
    weight: float | str
    settings: dict[str, float | bool | str]


class ApplyReport(Document):
    """What `apply` did.

    `settings` are all parameters of the method, given or by default, those that differ by tensor as the rules that say
    so; `seed` is that of its random masks, null for a method that draws none. `remedies` are the differences between a
    delta and the target that were dealt with, `overridden` the findings that would have stopped it but for `force`.
    `licence` is that of the output, as far as names can tell, null where a parent's is unknown; `obligations` are what
    it asks for, `licence_warnings` what is unknown, and which licences do not go together, where that was accepted.
    `device` is what computed: `cpu`, or the GPUs.
    `target_bytes` and `delta_bytes` are read, `output_bytes` written, or would be. `expected_memory` is about what is
    held at most, `peak_memory` what the process has held at most, in bytes of this machine's memory, not of GPUs, the
    interpreter and its libraries included; null in a dry run. `resumed_tensors` were finished by a run that was
    killed. `seconds` is all of it, `load_seconds` the part in which compiled loops (compiled, on a machine's first use)
    or torch were loaded, `sync_seconds` that in which the disk was waited for. `expected_seconds` is what a dry run
    finds, without the disk, for the busiest of the `ranks`; `bytes_per_second` is of the output, all but the loading of
    loops counted.
    """

    out: str
    target: str
    method: str
    settings: dict[str, float | bool | str]
    seed: int | None
    device: str
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
    licence: str | None
    obligations: list[str]
    licence_warnings: list[str]
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


def report_of(
    job: Prepared,
    out: str | os.PathLike[str],
    means: Means,
    held: int,
    written: Written,
    expected: float | None,
    seconds: float,
    load_seconds: float,
) -> ApplyReport:
    """The report, of a dry run where nothing was `written`; `expected` are the seconds of one process alone."""
    tensors = job.plan.tensors.values()
    return ApplyReport(
        out=str(out),
        target=job.target.id,
        method=job.merge.method.name,
        settings=settings_of(job.merge.told()),
        seed=job.merge.seed if job.merge.method.random else None,
        device=means.processor.name,
        deltas=[
            AppliedDelta(
                reference=str(delta.reference),
                digest=delta.artifact.digest,
                weight=delta.weights.plain,
                settings=settings_of(delta.parameters),
            )
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
        licence=job.licence.expression,
        obligations=list(job.licence.obligations),
        licence_warnings=job.licence.doubts,
        remedies=list(job.placement.remedies),
        overridden=job.overridden,
        warnings=[
            *(warning for delta in job.wanted for warning in delta.warnings),
            *job.notes(written.outcome),
            *written.warnings,
        ],
        threads=means.limits.threads,
        ranks=means.ranks.count,
        expected_memory=held,
        peak_memory=written.peak_memory,
        expected_seconds=None if expected is None else expected * largest_share(job.plan, means.ranks.count),
        seconds=seconds,
        load_seconds=load_seconds,
        sync_seconds=written.sync_seconds,
        bytes_per_second=written.nbytes / max(seconds - load_seconds, 1e-9) if written.nbytes else None,
        dry_run=written.peak_memory is None,
    )


def settings_of(parameters: Mapping[str, Schedule]) -> dict[str, float | bool | str]:
    """Parameters as a report tells them: those that differ by tensor as the rules that say so."""
    return {name: schedule.plain for name, schedule in parameters.items()}
