"""Where an output goes, by its name: a directory, or a prefix in an object store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from deltareg.checkpoint.bucket import is_bucket, parse_bucket_name
from deltareg.checkpoint.bucket_writer import BucketWriter, check_place, sending_bytes
from deltareg.checkpoint.reader import Checkpoint
from deltareg.checkpoint.staging import check_free
from deltareg.checkpoint.upload import MOST_WAITING
from deltareg.checkpoint.writer import CheckpointWriter, Job, Member, ShardPlan
from deltareg.errors import InvalidArgument, OutputExists

__all__ = ["MOST_WAITING", "Writer", "bytes_on_their_way", "check_output", "open_writer", "refuse_input"]

Writer = CheckpointWriter | BucketWriter
"""What writes a checkpoint, all or nothing."""


def open_writer(
    out: str | os.PathLike[str],
    shards: Sequence[ShardPlan],
    *,
    overwrite: bool = False,
    job: Job | None = None,
    member: Member | None = None,
    waiting: int = MOST_WAITING,
) -> Writer:
    """What writes the checkpoint `out`. Raises OutputExists as `check_output` does, DiskFull, NotAllowed.

    On their way to an object store so many bytes may be `waiting` for their turn in memory; others wait on disk.
    An object store keeps nothing that could be gone on with, and no file for several processes: InvalidArgument.
    """
    if not is_bucket(out):
        return CheckpointWriter(Path(out), shards, overwrite=overwrite, job=job, member=member)
    if member is not None or (job is not None and job.resume):
        raise InvalidArgument(
            f"{os.fspath(out)} can be written by one process only, from the beginning to the end",
            hint="leave --resume out and start it without torchrun, or write to a directory and copy that",
        )
    return BucketWriter(parse_bucket_name(os.fspath(out)), shards, overwrite=overwrite, memory=waiting)


def bytes_on_their_way(out: str | os.PathLike[str], sizes: Sequence[int]) -> int | None:
    """About how many bytes of shards of these sizes a writer to `out` holds at most, beside those that wait.

    None where nothing waits: what goes to a directory is written at once.
    """
    return sending_bytes(sizes) if is_bucket(out) else None


def check_output(out: str | os.PathLike[str], overwrite: bool) -> None:
    """Raise OutputExists unless `out` is free; with `overwrite` it may be a checkpoint, and nothing else."""
    if is_bucket(out):
        check_place(parse_bucket_name(os.fspath(out)), overwrite)
    else:
        check_free(Path(out), overwrite)


def refuse_input(target: Checkpoint, out: str | os.PathLike[str]) -> None:
    """Raise OutputExists where `out` is the target or holds it."""
    if is_bucket(out):
        held = is_bucket(target.label) and parse_bucket_name(os.fspath(out)).holds(parse_bucket_name(target.label))
    else:
        place = Path(os.path.realpath(out))  # `resolve` would not take links that lead round in a circle
        root = target.root.resolve() if target.is_local else None
        held = root is not None and place in (target.path.resolve(), root, *root.parents)
        if root is not None:  # a snapshot's files are links to elsewhere
            held = held or any(place in (root / shard.file).resolve().parents for shard in target.shards)
    if held:
        raise OutputExists(f"{os.fspath(out)} is the target itself, or holds it", hint="choose another -o", path=out)
