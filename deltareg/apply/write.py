"""Doing what was prepared, and making it visible: by one process, or by several that share the work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from deltareg.apply.card import card
from deltareg.apply.limits import Limits, peak_memory
from deltareg.apply.placement import WeightedDelta
from deltareg.apply.plan import Plan
from deltareg.apply.prepare import Prepared
from deltareg.apply.ranks import ALONE, Ranks, share
from deltareg.apply.run import NOTHING, Outcome, Share, run
from deltareg.checkpoint import CheckpointWriter, Job, Member, Seal
from deltareg.checkpoint.output import Writer, open_writer
from deltareg.errors import BadHeader, BadRecord, DigestMismatch
from deltareg.manifest import INVENTORY_TYPE, SIDE_FILE_TYPE
from deltareg.merge.processor import Processor
from deltareg.progress import Progress
from deltareg.store import Store

__all__ = ["Means", "Written", "verifying", "write"]


@dataclass(frozen=True)
class Means:
    """With what the work is done; the output depends on none of it."""

    limits: Limits
    ranks: Ranks
    processor: Processor
    progress: Progress


@dataclass(frozen=True)
class Written:
    """What the writing came to."""

    outcome: Outcome = NOTHING
    warnings: tuple[str, ...] = ()
    nbytes: int = 0
    resumed: int = 0
    sync_seconds: float = 0.0
    peak_memory: int | None = None


def write(
    job: Prepared,
    out: str | os.PathLike[str],
    store: Store,
    means: Means,
    resumption: Job | None,
    *,
    verified: Callable[[], None],
    overwrite: bool,
    seal: Seal | None = None,
) -> Written:
    """Do what was planned; of several ranks each its share, and the first what is left. Raises what `apply` does.

    `verified` returns once this rank's share of `verifying` is done, and raises what that does.
    """
    ranks = means.ranks
    own = share(job.plan, ranks.count)[ranks.number]
    with ExitStack() as stack:
        writer = stack.enter_context(_writer(job, out, means, own, resumption, overwrite=overwrite))
        done = writer.recover(_recoverable(job.plan, own), means.limits.threads)
        part = Share(own - done, own, ranks)

        def begin() -> None:
            verified()
            for _ in ranks.each(None):
                pass
            writer.vouch()

        try:
            outcome = run(
                job.plan,
                job.active,
                store,
                writer,
                limits=means.limits,
                progress=means.progress,
                part=part,
                verified=begin,
                processor=means.processor,
            )
        except BaseException as error:
            if isinstance(error, DigestMismatch | BadHeader | BadRecord):
                writer.discard()  # nothing that was made of damaged input is gone on with
            ranks.leave()
            raise
        before = time.monotonic()
        if ranks.count > 1:
            writer.sync()
        outcome = sum(ranks.each(outcome), NOTHING)
        if ranks.number == 0:
            _finish(job, writer, outcome, seal)
        for _ in ranks.each(None):
            pass
        resumed = sum(ranks.each(len(done)))
        kept = sum(ranks.each(sum(job.plan.tensors[name].nbytes for name in done)))
        nbytes = job.plan.nbytes - kept
        warnings = tuple(warning for told in ranks.each(writer.warnings) for warning in told)
        return Written(outcome, warnings, nbytes, resumed, time.monotonic() - before, peak_memory())


def verifying(deltas: Sequence[WeightedDelta], store: Store, ranks: Ranks = ALONE) -> list[Callable[[], None]]:
    """The verification of the deltas' packs and sketches, or of this rank's share of them.

    What nobody reads here is verified too: nothing is applied of a delta that has been damaged.
    """
    layers = [
        layer
        for delta in deltas
        for layer in delta.artifact.manifest.layers
        if layer.media_type not in (INVENTORY_TYPE, SIDE_FILE_TYPE)
    ]
    return [partial(store.verify, layer, quick=True) for layer in layers[ranks.number :: ranks.count]]


def _writer(
    job: Prepared,
    out: str | os.PathLike[str],
    means: Means,
    own: frozenset[str],
    resumption: Job | None,
    *,
    overwrite: bool,
) -> Writer:
    ranks = means.ranks
    if ranks.count == 1:
        waiting = means.limits.waiting
        return open_writer(out, job.plan.shards, overwrite=overwrite, job=resumption, waiting=waiting)
    if ranks.number == 0:
        leader = Member(0, own)
        writer = open_writer(out, job.plan.shards, overwrite=overwrite, job=resumption, member=leader)
        assert isinstance(writer, CheckpointWriter)  # an object store has been refused
        try:
            for _ in ranks.each(str(writer.staging)):
                pass
        except BaseException:
            writer.close()
            raise
        return writer
    staging, *_ = ranks.each(None)
    member = Member(ranks.number, own, Path(staging))
    return open_writer(out, job.plan.shards, overwrite=overwrite, job=resumption, member=member)


def _recoverable(planned: Plan, own: frozenset[str]) -> list[str]:
    """The tensors that may be taken over: of those with overwrites the report must tell, so that they are done anew."""
    return [
        name
        for name, tensor in planned.tensors.items()
        if name in own and not any(piece.entry.overwritten for piece in tensor.pieces)
    ]


def _finish(job: Prepared, writer: Writer, outcome: Outcome, seal: Seal | None) -> None:
    """Add the files beside the weights, and make all of it visible."""
    for name, data in job.files.items():
        writer.add_file(name, data)
    notes = job.notes(outcome)
    told = {"Remedies": job.placement.remedies, "Overridden findings": job.overridden, "Notes": notes}
    told["Licences"] = job.licence.told
    writer.add_file("README.md", card(job.target, job.wanted, job.merge, told, job.licence, job.labels))
    writer.commit(seal)
