"""Applying deltas to a target."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

from deltareg.apply.card import Labels
from deltareg.apply.device import open_processor
from deltareg.apply.estimate import expected_seconds
from deltareg.apply.limits import limits_for, resident_memory
from deltareg.apply.loops import load_loops
from deltareg.apply.plan import Merge, Parameters
from deltareg.apply.prepare import Deltas, open_delta, prepare, weighted
from deltareg.apply.ranks import ALONE, Ranks
from deltareg.apply.report import ApplyReport, report_of
from deltareg.apply.side_files import SideFiles
from deltareg.apply.write import Means, Written, verifying, write
from deltareg.catalog import Registry
from deltareg.checkpoint import Checkpoint, Job, Seal
from deltareg.checkpoint.output import check_output, refuse_input
from deltareg.errors import InvalidArgument
from deltareg.licences import refuse_conflicts
from deltareg.merge.processor import CPU
from deltareg.progress import SILENT, Progress
from deltareg.recipe import Dtype
from deltareg.threads import in_background, thread_count

__all__ = ["DTYPES", "apply"]

# Hashing what is written costs a twentieth of the time. What is smaller is done again sooner than it is read again.
_WORTH_A_JOURNAL = 4 * 2**30

DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
"""The dtypes that an output can be asked for, as config.json and as safetensors calls them."""


def apply(
    target: Checkpoint | str | os.PathLike[str],
    deltas: Deltas,
    registry: Registry,
    out: str | os.PathLike[str],
    *,
    method: str = "linear",
    parameters: Parameters | None = None,
    seed: int = 0,
    side_files: SideFiles = "post",
    with_added: bool | None = None,
    dtype: Dtype | None = None,
    force: bool = False,
    accept_licence: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    memory: int | None = None,
    threads: int | None = None,
    ranks: Ranks = ALONE,
    device: str = "cpu",
    dry_run: bool = False,
    labels: Labels | None = None,
    seal: Seal | None = None,
    progress: Progress = SILENT,
) -> ApplyReport:
    """Write the target with deltas merged into it as the checkpoint `out`: by default target + Σ weight · delta.

    `deltas` are names in `registry` with their weights; a weight of 0 leaves the delta out. `method` is one of
    `deltareg.merge.METHODS`, `parameters` are its own; weights and parameters are numbers, a `Gradient` along the
    layers, or a `Schedule` of both by module classes and patterns of tensor names. What may differ by delta, such as a
    density, can be given with a delta too, `(name, weight, {"density": 0.3})`, and counts before what is for all.
    `seed` starts the random masks of the methods that have such. The output appears whole or not at all.

    Each delta is checked first, as `deltareg.check` does. What is incompatible is refused unless `force` is given; what
    is adaptable is adapted, and the model card says how. A delta that was taken on top of others is applied with these,
    or to its own base; that and deltas that exclude one another are refused otherwise, unless `force` is given.
    `with_added` takes tensors that only post has, or leaves them out; None takes them where the target is the delta's
    own base. `side_files` says whose tokenizer, chat template and generation config the output gets: "post", those that
    came with the first delta, or "target". Tensors of floats come out as `dtype`, by default in the target's: sums are
    rounded once, to that.

    With `resume` what a killed run of the same call has finished is taken over, once its bytes were read again and
    found right, and what this one has finished stays should it fail. `memory` bounds the bytes that are held in this
    machine's memory, those of the interpreter and its libraries included; GPUs' own are not counted. `ranks` are the
    processes that share the work: each makes this same call, and each gets the same report. `device` is what computes:
    "cpu", "cuda", "cuda:1", "cuda:all", or several: "cuda:0,cuda:1". GPUs need torch; "torch:cpu" is their way on the
    processor, to test it. The result depends on none of these. `labels` are what the model card calls things; `seal`
    gives files to put beside it once all else is written.

    Licences that do not go together, or forbid derivatives, are refused unless `accept_licence` is given: as far as
    their names tell, see `deltareg.licences`.

    Raises NotHomologous, LicenceRefused, NotFound, OutputExists, InvalidArgument, DigestMismatch, BadRecord, DiskFull,
    RankLost, DeviceFull.
    """
    started = time.monotonic()
    named = weighted(deltas)
    merge = Merge.of(method, parameters, seed)
    if dtype is not None and dtype not in DTYPES:
        raise InvalidArgument(f"unknown dtype {dtype!r}", hint=f"an output's dtype is one of {', '.join(DTYPES)}")
    if side_files not in ("post", "target"):
        raise InvalidArgument(f"unknown side files {side_files!r}", hint="side files are those of: post, target")
    count = thread_count(threads)
    with ExitStack() as stack:
        stack.enter_context(_told_to(ranks))
        before = time.monotonic()
        processor = open_processor(device, ranks.local)
        loaded = time.monotonic() - before
        checkpoint = target if isinstance(target, Checkpoint) else stack.enter_context(Checkpoint.open(target))
        refuse_input(checkpoint, out)
        wanted = [open_delta(registry, *one) for one in named]
        job = prepare(
            checkpoint,
            wanted,
            merge,
            side_files,
            count,
            with_added=with_added,
            force=force,
            dtype=None if dtype is None else DTYPES[dtype],
            labels=labels,
        )
        if job.active:
            refuse_conflicts(job.licence, accept=accept_licence)
        # Hashing takes no turn of the interpreter's, which loading loops keeps busy.
        tasks = () if dry_run else verifying(job.active, registry.store, ranks)
        verified = stack.enter_context(in_background(tasks, count))
        written, expected = Written(), None
        before = time.monotonic()
        if processor is CPU:
            load_loops(job.plan)
        loaded += time.monotonic() - before
        limits, held = limits_for(job.plan, count, memory, resident_memory(), out)
        means = Means(limits, ranks, processor, progress)
        if dry_run:
            check_output(out, overwrite)
            expected = expected_seconds(job.plan, job.active, registry.store, limits, processor)
        else:
            worth = resume or job.plan.nbytes >= _WORTH_A_JOURNAL
            resumption = Job(job.digest(), resume) if worth else None
            written = write(
                job, out, registry.store, means, resumption, verified=verified, overwrite=overwrite, seal=seal
            )
        return report_of(job, out, means, held, written, expected, time.monotonic() - started, loaded)


@contextmanager
def _told_to(ranks: Ranks) -> Generator[None]:
    """Let the other ranks hear of what ends this one."""
    try:
        yield
    except BaseException as error:
        ranks.fail(error)
        raise
