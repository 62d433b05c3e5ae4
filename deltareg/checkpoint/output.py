"""Where an output goes, by its name: a directory, or a prefix in an object store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from deltareg.checkpoint.bucket import is_bucket, parse_bucket_name
from deltareg.checkpoint.bucket_writer import BucketWriter, check_place
from deltareg.checkpoint.reader import Checkpoint
from deltareg.checkpoint.staging import check_free
from deltareg.checkpoint.writer import CheckpointWriter, ShardPlan
from deltareg.errors import OutputExists

__all__ = ["check_output", "open_writer", "refuse_input"]


def open_writer(
    out: str | os.PathLike[str], shards: Sequence[ShardPlan], *, overwrite: bool = False
) -> CheckpointWriter | BucketWriter:
    """What writes the checkpoint `out`. Raises OutputExists as `check_output` does, DiskFull, NotAllowed."""
    if is_bucket(out):
        return BucketWriter(parse_bucket_name(os.fspath(out)), shards, overwrite=overwrite)
    return CheckpointWriter(Path(out), shards, overwrite=overwrite)


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
        place = Path(out).resolve()
        root = target.root.resolve() if target.is_local else None
        held = root is not None and place in (target.path.resolve(), root, *root.parents)
    if held:
        raise OutputExists(f"{os.fspath(out)} is the target itself, or holds it", hint="choose another -o", path=out)
