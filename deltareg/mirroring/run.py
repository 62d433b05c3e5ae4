"""Making one remote hold what another has: blobs first, then names, a group of versions after the other."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from deltareg.digest import Digest, parse_digest
from deltareg.errors import (
    ChannelMoved,
    DeltaregError,
    DiskFull,
    InvalidArgument,
    NotAllowed,
    RemoteUnavailable,
    VersionExists,
)
from deltareg.manifest import Descriptor, Document, Manifest, ReferrerManifest
from deltareg.mirroring.plan import Plan, Scope, mark, plan_of
from deltareg.mirroring.staging import Staging
from deltareg.names import Reference
from deltareg.progress import SILENT, Progress
from deltareg.remote import Remote, RemoteEntry, is_removing, open_meant, read_manifest
from deltareg.store import parse_manifest, parse_referrer
from deltareg.threads import in_order, in_parallel

__all__ = ["MirrorReport", "MirrorRow", "mirror"]

_GROUP_BYTES = 1 << 30
_GROUP_VERSIONS = 100
"""After so much the names of what was sent are set: a remote forgets blobs that nothing names."""

Change = Literal["copied", "marked", "referrer", "moved", "removed", "refused", "failed"]


class MirrorRow(Document):
    """What became of one name."""

    reference: str
    digest: str
    change: Change = Field(
        description="copied; marked: yanked or deprecated otherwise than before; referrer: of a version, such as a "
        "signature; moved: a channel; removed; refused: the mirror has other bytes; failed"
    )
    bytes: int = Field(default=0, description="bytes of blobs that were moved for it")
    problem: str | None = Field(default=None, description="why it was refused, or failed")


class MirrorReport(Document):
    """What a mirror was given, or would be."""

    source: str = Field(description="URL")
    destination: str = Field(description="URL")
    rows: list[MirrorRow] = Field(description="what changed, and what could not")
    unchanged: int = Field(description="versions that were there already")
    blobs: int = Field(description="blobs that were moved")
    bytes: int = Field(description="bytes of these")
    seconds: float
    dry_run: bool
    warnings: list[str] = Field(default=[], description="what the user should know")

    def count(self, change: Change) -> int:
        """How many names that became of."""
        return sum(row.change == change for row in self.rows)

    @property
    def ok(self) -> bool:
        """Whether nothing was refused and nothing failed."""
        return not self.count("refused") and not self.count("failed")


def mirror(
    source: Remote | str,
    destination: Remote | str,
    *,
    scope: Scope | None = None,
    delete: bool = False,
    staging: Path | None = None,
    threads: int = 4,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> MirrorReport:
    """Make `destination` hold the versions of `source`, with what is said of them, what refers to them, and channels.

    Only what is missing travels, `threads` blobs at a time, by way of files in the directory `staging`, where a blob
    that was cut off is continued the next time. A version that has other bytes there is told and left alone, one that
    cannot be read is told; neither hinders the others. With `delete` what `source` no longer has is removed.

    Raises RemoteUnavailable, NotAllowed, DiskFull: what was mirrored by then stays. Busy where another process uses
    `staging`. InvalidArgument where `delete` would leave nothing, or where the destination removes nothing.
    """
    begun = time.monotonic()
    source, destination = open_meant(source), open_meant(destination)
    scope = scope or Scope()
    if threads < 1:
        raise InvalidArgument(f"threads is {threads}; it takes 1 or more")
    plan = plan_of(_names(source, scope), _names(destination, scope), scope, delete=delete)
    _check_delete(plan, source, destination)
    with ExitStack() as stack:
        place: Staging | None = None
        if not dry_run:
            if staging is None:
                staging = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deltareg-")))
            place = stack.enter_context(Staging(staging).held())
        work = _Mirroring(source, destination, place, threads, progress or SILENT)
        work.copy(plan)
        work.follow(plan)
    return MirrorReport(
        source=source.url,
        destination=destination.url,
        rows=work.rows,
        unchanged=len(plan.present) - len(plan.marked),
        blobs=len(work.moved),
        bytes=sum(work.moved.values()),
        seconds=time.monotonic() - begun,
        dry_run=dry_run,
        warnings=work.warnings,
    )


def _names(remote: Remote, scope: Scope) -> list[RemoteEntry]:
    if scope.repositories and not scope.namespaces:
        return [entry for repository in sorted(scope.repositories) for entry in remote.list(repository)]
    return remote.list()


def _check_delete(plan: Plan, source: Remote, destination: Remote) -> None:
    if not plan.removed:
        return
    if not is_removing(destination):
        raise InvalidArgument(
            f"{destination.url} removes no versions", hint="leave --delete out, or yank them there: deltareg yank"
        )
    if not plan.present and not plan.copies and not plan.refused:
        raise InvalidArgument(
            f"{source.url} has none of these versions: all {len(plan.removed)} of {destination.url} would be removed",
            cause="a source that is empty is more likely one that is not mounted",
            hint="look at it with deltareg list --remote, and leave --delete out",
        )


@dataclass(frozen=True)
class _Wanted:
    """A manifest that is to be put there, the blobs that are missing for it, and what puts it."""

    reference: Reference
    digest: Digest
    change: Change
    blobs: list[Descriptor]
    put: Callable[[], object]


class _Mirroring:
    """One mirroring, and what came of it. Without `staging` nothing is written."""

    def __init__(
        self, source: Remote, destination: Remote, staging: Staging | None, threads: int, progress: Progress
    ) -> None:
        self.rows: list[MirrorRow] = []
        self.warnings: list[str] = []
        self.moved: dict[tuple[str, str], int] = {}
        self._source = source
        self._destination = destination
        self._staging = staging
        self._threads = threads
        self._progress = progress

    def copy(self, plan: Plan) -> None:
        """Copy the versions that are missing, and then what refers to those that are there."""
        for entry, found in plan.refused:
            self._tell(entry.reference, entry.digest, "refused", problem=f"there it has other bytes: {found}")
        versions = self._read(plan.copies, self._version)
        with self._progress.step("mirror", sum(blob.size for wanted in versions for blob in wanted.blobs)):
            self._send(versions)
        # A registry takes what refers to a version once it has the version.
        lost = {row.digest for row in self.rows if row.change in ("refused", "failed")}
        there = [entry for entry in [*plan.present, *plan.copies] if entry.digest not in lost]
        referrers = self._read(there, self._referrers)
        self._send(referrers)

    def follow(self, plan: Plan) -> None:
        """Let names mean and say there what they do at the source, and remove what is too much."""
        for entry in plan.marked:
            if self._staging is not None:
                mark(self._destination, entry)
            self._tell(entry.reference, entry.digest, "marked")
        lost = {(row.reference, row.digest) for row in self.rows if row.change in ("refused", "failed")}
        there = {
            (entry.reference.repository, entry.digest)
            for entry in [*plan.present, *plan.copies]
            if (str(entry.reference), entry.digest) not in lost
        }
        for move in plan.moves:
            if (move.channel.repository, move.digest) in there:
                self._move(move.channel, move.digest, move.expected)
            else:
                self.warnings.append(f"{move.channel} stays as it is: the version that it names was not mirrored")
        for entry in plan.dropped:
            if self._staging is not None:
                self._destination.remove_channel(entry.reference.repository, str(entry.reference.tag))
            self._tell(entry.reference, entry.digest, "removed")
        for entry in plan.removed:
            self._remove(entry)

    def _move(self, channel: Reference, digest: Digest, expected: Digest | None) -> None:
        try:
            if self._staging is not None:
                self._destination.set_channel(channel.repository, str(channel.tag), digest, expected)
        except ChannelMoved as error:
            self.warnings.append(f"somebody else moves {channel} at {self._destination.url}: {error.message}")
        else:
            self._tell(channel, digest, "moved")

    def _remove(self, entry: RemoteEntry) -> None:
        try:
            if self._staging is not None and is_removing(self._destination):
                self._destination.remove(entry.reference)
        except NotAllowed as error:
            # A channel that could not be moved names it, which is no reason to stop.
            self._tell(entry.reference, entry.digest, "failed", problem=error.message)
        else:
            self._tell(entry.reference, entry.digest, "removed")

    # --- what is to be sent ---

    def _read(self, entries: Sequence[RemoteEntry], read: Callable[[RemoteEntry], list[_Wanted]]) -> list[_Wanted]:
        """What is to be sent for each version. One that cannot be read is told."""

        def attempt(entry: RemoteEntry) -> list[_Wanted]:
            try:
                return read(entry)
            except (RemoteUnavailable, NotAllowed, DiskFull):
                raise
            except DeltaregError as error:
                self._tell(entry.reference, entry.digest, "failed", problem=error.message)
                return []

        tasks = [partial(attempt, entry) for entry in entries]
        return [wanted for found in in_order(tasks, self._threads) for wanted in found]

    def _version(self, entry: RemoteEntry) -> list[_Wanted]:
        repository = entry.reference.repository
        data = read_manifest(self._source, repository, entry.digest)
        manifest = parse_manifest(data, what=f"the manifest of {entry.reference} from {self._source.url}")

        def put() -> None:
            self._destination.put_manifest(entry.reference, data)
            if entry.yanked is not None or entry.deprecated is not None:
                mark(self._destination, entry)

        return [_Wanted(entry.reference, entry.digest, "copied", self._missing(repository, manifest), put)]

    def _referrers(self, entry: RemoteEntry) -> list[_Wanted]:
        repository = entry.reference.repository
        there = {one.digest for one in self._destination.referrers(repository, entry.digest)}
        found: list[_Wanted] = []
        for one in self._source.referrers(repository, entry.digest):
            if one.digest in there:
                continue
            digest = parse_digest(one.digest)
            data = read_manifest(self._source, repository, digest)
            manifest = parse_referrer(data, what=f"{digest}, which refers to {entry.reference} at {self._source.url}")
            put = partial(self._destination.put_referrer, repository, data)
            found.append(_Wanted(entry.reference, digest, "referrer", self._missing(repository, manifest), put))
        return found

    def _missing(self, repository: str, manifest: Manifest | ReferrerManifest) -> list[Descriptor]:
        absent = self._destination.missing(repository, [parse_digest(blob.digest) for blob in manifest.blobs])
        return [blob for blob in manifest.blobs if blob.digest in absent]

    # --- sending ---

    def _send(self, everything: Iterable[_Wanted]) -> None:
        for group in _groups(everything):
            blobs: dict[tuple[str, str], Descriptor] = {}
            for wanted in group:
                blobs.update({(wanted.reference.repository, blob.digest): blob for blob in wanted.blobs})
            fresh = {key: blob for key, blob in blobs.items() if key not in self.moved}
            faults = self._carry(fresh) if self._staging is not None else {}
            self.moved.update({key: blob.size for key, blob in fresh.items() if key not in faults})
            for wanted in group:
                keys = [(wanted.reference.repository, blob.digest) for blob in wanted.blobs]
                self._put(wanted, next((faults[key] for key in keys if key in faults), None))

    def _carry(self, blobs: dict[tuple[str, str], Descriptor]) -> dict[tuple[str, str], DeltaregError]:
        """Bring blobs from the one to the other; return what is wrong with those that did not arrive."""
        staging = self._staging
        assert staging is not None
        faults: dict[tuple[str, str], DeltaregError] = {}

        def carry(item: tuple[tuple[str, str], Descriptor], progress: Progress) -> int:
            key, blob = item
            try:
                return staging.carry(key[0], blob, self._source, self._destination, progress)
            except (RemoteUnavailable, NotAllowed, DiskFull):
                raise
            except DeltaregError as error:
                faults[key] = error
                return 0

        in_parallel(carry, list(blobs.items()), self._threads, self._progress)
        return faults

    def _put(self, wanted: _Wanted, fault: DeltaregError | None) -> None:
        size = sum(blob.size for blob in wanted.blobs)
        try:
            if fault is not None:
                raise fault
            if self._staging is not None:
                wanted.put()
        except VersionExists as error:
            self._tell(wanted.reference, wanted.digest, "refused", problem=error.message)
        except (RemoteUnavailable, NotAllowed, DiskFull) as error:
            # What refers to a version may be too much for a registry, which is no reason to stop.
            if wanted.change != "referrer" or not isinstance(error, NotAllowed):
                raise
            self._tell(wanted.reference, wanted.digest, "failed", problem=error.message)
        except DeltaregError as error:
            self._tell(wanted.reference, wanted.digest, "failed", problem=error.message)
        else:
            self._tell(wanted.reference, wanted.digest, wanted.change, size)

    def _tell(
        self, reference: Reference, digest: Digest, change: Change, size: int = 0, problem: str | None = None
    ) -> None:
        row = MirrorRow(reference=str(reference), digest=digest, change=change, bytes=size, problem=problem)
        self.rows.append(row)


def _groups(everything: Iterable[_Wanted]) -> Iterator[list[_Wanted]]:
    """Groups that are sent, and then named, one after the other."""
    group: list[_Wanted] = []
    size = 0
    for wanted in everything:
        group.append(wanted)
        size += sum(blob.size for blob in wanted.blobs)
        if size >= _GROUP_BYTES or len(group) >= _GROUP_VERSIONS:
            yield group
            group, size = [], 0
    if group:
        yield group
