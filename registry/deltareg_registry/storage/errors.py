"""What the storage reports, as errors of deltareg."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from deltareg.checkpoint.bucket import BucketName
from deltareg.checkpoint.bucket import translated as translated_bucket
from deltareg.errors import CheckpointNotFound, NotFound, translate_os_errors

__all__ = ["translated"]


@contextmanager
def translated(bucket: BucketName | None, what: str) -> Generator[None]:
    """Turn what obstore raises of `what`, in a bucket or in files, into errors of deltareg.

    Raises NotFound, BucketUnavailable, NotAllowed, DiskFull.
    """
    try:
        if bucket is None:
            with translate_os_errors("use the storage", what):
                try:
                    yield
                except FileNotFoundError as error:
                    raise NotFound(f"{what} is not in the storage") from error
        else:
            with translated_bucket(bucket, what):
                yield
    except CheckpointNotFound as error:
        raise NotFound(f"{what} is not in the storage") from error
