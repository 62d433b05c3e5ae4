"""The deltas that an imported recipe needs: found in the registry, or taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Literal

from pydantic import Field

from deltareg.catalog import Registry
from deltareg.checkpoint import Checkpoint
from deltareg.describe import digest_of
from deltareg.diff import diff
from deltareg.errors import DeltaregError, VersionExists
from deltareg.lora import import_lora
from deltareg.manifest import Document, Parent, Preset
from deltareg.mergekit.models import Model
from deltareg.names import Reference, is_version, latest_of, parse_reference, version_key
from deltareg.progress import SILENT, Progress
from deltareg.store import Entry

__all__ = ["ImportedDelta", "Taker"]

_FIRST = "1.0.0"
_ROOM = 60
"""Letters of a name that a number is put behind."""


class ImportedDelta(Document):
    """A delta of an imported recipe."""

    model: str = Field(description="the model as the configuration names it")
    line: int = Field(description="its line there")
    reference: str
    digest: str | None = Field(description="null where it would be taken")
    status: Literal["found", "taken", "would take"] = Field(description="whether the registry had it before")
    artifact_size: int | None = Field(description="bytes; null where it was not worked out")


@dataclass
class Taker:
    """Finds deltas of one base in a registry, or takes them into a namespace of it."""

    registry: Registry
    namespace: str
    preset: Preset = "fast"
    licence: str | None = None
    threads: int = 1
    dry_run: bool = False
    progress: Progress = SILENT
    _digests: dict[str, str] = field(default_factory=dict[str, str])
    _used: set[str] = field(default_factory=set[str])

    def delta(self, before: Checkpoint, model: Model, name: str) -> ImportedDelta:
        """The delta from `before` to a model, under `name` unless there is an equal one already.

        No two have one repository: a recipe takes one version of each.
        """
        told = self._delta(before, model, self._unused(name))
        self._used.add(parse_reference(told.reference).repository)
        return told

    def _unused(self, name: str) -> str:
        names = chain([name], (f"{name[:_ROOM]}-{number}" for number in count(2)))
        return next(one for one in names if f"{self.namespace}/{one}" not in self._used)

    def _delta(self, before: Checkpoint, model: Model, name: str) -> ImportedDelta:
        if model.lora is not None:
            return self._of_adapter(before, model, name)
        with ExitStack() as stack:
            after = stack.enter_context(Checkpoint.open(model.place, headers_only=self.dry_run))
            entry = self._equal(before, after)
            if entry is not None:
                size = self.registry.artifact(entry.reference).size
                return _told(model, entry.reference, entry.digest, "found", size)
            reference = next(self._free(name))
            if self.dry_run:
                return _told(model, reference, None, "would take", None)
            report = diff(
                before,
                after,
                self.registry,
                reference,
                preset=self.preset,
                licence=self.licence,
                threads=self.threads,
                progress=self.progress,
            )
            return _told(model, reference, report.digest, "taken", report.artifact_size)

    def _of_adapter(self, before: Checkpoint, model: Model, name: str) -> ImportedDelta:
        """Factors are stored as they are: whether a version has them is known once they are encoded."""
        assert model.lora is not None
        for reference in chain(self._published(name), self._free(name)):
            there = self._entries().get(str(reference))
            try:
                report = import_lora(
                    model.lora,
                    before,
                    self.registry,
                    reference,
                    preset=self.preset,
                    licence=self.licence,
                    threads=self.threads,
                    dry_run=self.dry_run,
                    progress=self.progress,
                )
            except VersionExists:
                continue
            if there is not None:
                return _told(model, reference, there.digest, "found", report.artifact_size)
            status = "would take" if self.dry_run else "taken"
            return _told(model, reference, report.digest, status, report.artifact_size)
        raise AssertionError("there is always a free version")

    def _equal(self, before: Checkpoint, after: Checkpoint) -> Entry | None:
        """A published version with an exact delta of the same two checkpoints."""
        for entry in self._entries().values():
            if entry.reference.repository in self._used:
                continue
            try:
                config = self.registry.artifact(entry.reference).config
            except DeltaregError:
                continue
            exact = config.exactness.kind == "exact"
            if exact and self._is(before, config.base) and self._is(after, config.post):
                return entry
        return None

    def _is(self, checkpoint: Checkpoint, parent: Parent) -> bool:
        """Whether a checkpoint is that parent: by its commit on the hub, or by the digest of all its tensors."""
        if checkpoint.revision is not None and (checkpoint.id, checkpoint.revision) == (parent.id, parent.revision):
            return True
        if sum(tensor.nbytes for tensor in checkpoint.tensors.values()) != parent.size or not checkpoint.is_local:
            return False
        place = str(checkpoint.path)
        if place not in self._digests:
            self._digests[place] = digest_of(checkpoint, self.threads)
        return self._digests[place] == parent.digest

    def _entries(self) -> dict[str, Entry]:
        """The versions that may be taken, the newest names last."""
        entries = self.registry.store.snapshot().entries
        return {
            name: entry for name, entry in entries.items() if entry.reference.version is not None and not entry.yanked
        }

    def _published(self, name: str) -> list[Reference]:
        repository = f"{self.namespace}/{name}"
        return [entry.reference for entry in self._entries().values() if entry.reference.repository == repository]

    def _free(self, name: str) -> Iterator[Reference]:
        """Versions that were never used: 1.0.0, or those after the highest."""
        snapshot = self.registry.store.snapshot()
        repository = f"{self.namespace}/{name}"
        used = [
            one.partition(":")[2] for one in (*snapshot.entries, *snapshot.removed) if one.startswith(f"{repository}:")
        ]
        used = [tag for tag in used if is_version(tag)]
        version = _FIRST
        if used:
            highest = max(latest_of(used) or _FIRST, max(used, key=version_key), key=version_key)
            version = str(version_key(highest).bump_patch())
        while True:
            if version not in used:
                yield Reference(self.namespace, name, version)
            version = str(version_key(version).bump_patch())


def _told(
    model: Model,
    reference: Reference,
    digest: str | None,
    status: Literal["found", "taken", "would take"],
    size: int | None,
) -> ImportedDelta:
    return ImportedDelta(
        model=model.said.text,
        line=model.said.line,
        reference=str(reference),
        digest=digest,
        status=status,
        artifact_size=size,
    )
