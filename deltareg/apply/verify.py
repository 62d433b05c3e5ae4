"""Verifying a delta: its bytes, its records, and that they turn base into post."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Set
from contextlib import ExitStack, closing
from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from deltareg.apply.approximation import verify_errors
from deltareg.apply.limits import Limits
from deltareg.apply.placement import WeightedDelta
from deltareg.apply.plan import Plan, plan
from deltareg.apply.run import run
from deltareg.artifact import Artifact
from deltareg.catalog import Registry
from deltareg.checkpoint import Checkpoint, Tensor
from deltareg.codec import RecordReader
from deltareg.errors import InvalidArgument, NotReproduced
from deltareg.manifest import Document
from deltareg.merge import Schedule
from deltareg.names import Reference
from deltareg.progress import SILENT, Progress
from deltareg.signing import SignatureRow
from deltareg.threads import in_order, thread_count

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["VerifyReport", "verify"]

_BLOCK = 4 * 2**20
_SHOWN = 12


class VerifyReport(Document):
    """What `verify` found sound.

    `reproduced`: base and delta give post bit for bit, or, of a lossy delta, with just the errors that it records; None
    where base and post were not given. `relative_error` is what was measured of a lossy delta, null of an exact one.
    """

    reference: str
    digest: str
    blobs: int
    bytes: int
    tensors: int
    reproduced: bool | None
    relative_error: float | None
    signatures: list[SignatureRow] = Field(default=[], description="of the delta, where it was asked who signed it")
    seconds: float


def verify(
    reference: Reference | str,
    registry: Registry,
    *,
    base: Checkpoint | str | os.PathLike[str] | None = None,
    post: Checkpoint | str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> VerifyReport:
    """Check every digest, and decode every record; with `base` and `post`, also that the one becomes the other.

    A lossy delta cannot give post bit for bit: of each tensor that is approximated the error is measured, and must be
    the one that the delta records.

    Raises DigestMismatch, BadRecord, BadManifest; NotReproduced, naming the tensors; NotHomologous.
    """
    started = time.monotonic()
    if (base is None) != (post is None):
        raise InvalidArgument("base and post belong together", hint="give both, or neither")
    name = registry.version_of(reference)
    artifact = registry.artifact(name)
    _ = artifact.config
    count = thread_count(threads)
    _verify_blobs(artifact, registry, count, progress)
    _verify_records(artifact, count)
    error = None
    if base is not None and post is not None:
        with ExitStack() as stack:
            before = base if isinstance(base, Checkpoint) else stack.enter_context(Checkpoint.open(base))
            after = post if isinstance(post, Checkpoint) else stack.enter_context(Checkpoint.open(post))
            delta = WeightedDelta(name, artifact, Schedule.of(1.0))
            _verify_reproduction(delta, registry, before, after, count, progress)
            error = verify_errors(delta, before, after, count)
    return VerifyReport(
        reference=str(name),
        digest=artifact.digest,
        blobs=len(artifact.manifest.blobs) + 1,
        bytes=artifact.size,
        tensors=len(artifact.inventory.tensors),
        reproduced=None if base is None else True,
        relative_error=error,
        seconds=time.monotonic() - started,
    )


def _verify_blobs(artifact: Artifact, registry: Registry, threads: int, progress: Progress) -> None:
    blobs = artifact.manifest.blobs
    checks = [partial(registry.store.verify, blob, progress) for blob in blobs]
    # What `apply` would refuse is not sound.
    checks += [partial(registry.store.verify, blob, progress, quick=True) for blob in blobs if blob.blake3]
    with progress.step("verify", sum(blob.size * (2 if blob.blake3 else 1) for blob in blobs)):
        _do_all(checks, threads)
    artifact.side_files()


def _verify_records(artifact: Artifact, threads: int) -> None:
    with artifact.open_packs() as packs:

        def readings() -> Generator[Callable[[], object]]:
            for entry in artifact.inventory.tensors:
                if entry.packs:
                    reader = RecordReader(entry, packs.parts(entry))
                    yield from (partial(reader.read, number) for number in range(reader.count))

        _do_all(readings(), threads)


def _do_all(tasks: Iterable[Callable[[], object]], threads: int) -> None:
    with closing(in_order(tasks, threads)) as results:
        for _ in results:
            pass


def _verify_reproduction(
    delta: WeightedDelta, registry: Registry, base: Checkpoint, post: Checkpoint, threads: int, progress: Progress
) -> None:
    planned = plan(base, [delta])
    wrong = _other_tensors(planned, post)
    if not wrong:
        approximated = {entry.name for entry in delta.artifact.inventory.tensors if entry.error is not None}
        comparison = _Comparison(post, approximated)
        limits = Limits(threads)
        # Every blob was verified before this.
        run(planned, [delta], registry.store, comparison, limits=limits, progress=progress, verified=lambda: None)
        wrong = sorted(comparison.wrong)
    if wrong:
        shown = ", ".join(wrong[:_SHOWN]) + (f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else "")
        raise NotReproduced(
            f"{base.id} with {delta.reference} is not {post.id}: {shown}",
            cause=f"{len(wrong)} tensors differ",
            hint="are these the checkpoints that the delta was taken from?",
            tensors=wrong,
        )


def _other_tensors(planned: Plan, post: Checkpoint) -> list[str]:
    """The tensors that only one of the plan and post has, or that have another dtype or shape."""
    ours = {name: (tensor.dtype, tensor.shape) for name, tensor in planned.tensors.items()}
    theirs = {name: (tensor.dtype, tensor.shape) for name, tensor in post.tensors.items()}
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


class _Comparison:
    """Takes what an apply would write, and notes the tensors in which post has other bytes.

    Of those that are approximated nothing is expected.
    """

    def __init__(self, post: Checkpoint, approximated: Set[str]) -> None:
        self.wrong: set[str] = set()
        self._post = post
        self._approximated = approximated
        self._lock = threading.Lock()

    def write(self, tensor: str, offset: int, data: Buffer) -> None:
        """Compare a part of a tensor."""
        if tensor in self._approximated:
            return
        view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
        if memoryview(self._post.tensors[tensor].read(offset, len(view))) != view:
            with self._lock:
                self.wrong.add(tensor)

    def copy_part(self, tensor: str, offset: int, nbytes: int, source: Tensor) -> bool:
        """Be given them, to compare them."""
        return False

    def copy(self, tensor: str, source: Tensor, progress: Progress | None = None) -> None:
        """Compare a tensor that stays as it is."""
        for offset in range(0, source.nbytes, _BLOCK):
            data = source.read(offset, min(_BLOCK, source.nbytes - offset))
            self.write(tensor, offset, data)
            if progress is not None:
                progress.advance(len(data))
