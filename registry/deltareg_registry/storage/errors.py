"""What the storage reports, as errors of deltareg."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from deltareg.checkpoint.bucket import BucketName
from deltareg.checkpoint.bucket import translated as translated_bucket
from deltareg.errors import CheckpointNotFound, DeltaregError, DiskFull, NotAllowed, NotFound, translate_os_errors

__all__ = ["translated"]


@contextmanager
def translated(bucket: BucketName | None, what: str) -> Generator[None]:
    """Turn what obstore raises of `what`, in a bucket or in files, into errors of deltareg.

    What went wrong with the server's own storage is no fault of whoever asks, and the paths in it are not for them.
    Raises NotFound, BucketUnavailable, DiskFull; DeltaregError for the rest.
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
    except DiskFull as error:
        raise DiskFull(
            f"the registry has no room left for {what}", cause=error.cause, hint="tell whoever runs it"
        ) from error
    except DeltaregError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise NotFound(f"{what} is not in the storage") from error
        if isinstance(error, NotAllowed) or isinstance(error.__cause__, OSError):
            raise DeltaregError(
                f"the registry cannot use its storage for {what}", cause=error.cause, hint="tell whoever runs it"
            ) from error
        raise
