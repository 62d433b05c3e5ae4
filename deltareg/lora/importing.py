"""Taking a delta from an adapter: base and adapter become an artifact in a registry."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack

from deltareg.catalog import Registry
from deltareg.checkpoint import Checkpoint
from deltareg.diff import diff
from deltareg.lora.adapter import open_adapter
from deltareg.lora.merged import merge
from deltareg.manifest import Document, Preset
from deltareg.names import Reference
from deltareg.progress import SILENT, Progress
from deltareg.relations import On

__all__ = ["ImportReport", "import_lora"]


class ImportReport(Document):
    """What `import-lora` did. Sizes in bytes; `ranks` counts the tensors of each rank."""

    reference: str
    digest: str | None
    adapter: str
    base: str
    low_rank: int
    full: int
    added: int
    ranks: dict[str, int]
    adapter_size: int
    artifact_size: int
    kinds: dict[str, int]
    notes: list[str]
    seconds: float
    dry_run: bool


def import_lora(
    adapter: Checkpoint | str | os.PathLike[str],
    base: Checkpoint | str | os.PathLike[str],
    registry: Registry,
    reference: Reference | str,
    *,
    preset: Preset = "fast",
    licence: str | None = None,
    description: str | None = None,
    on: On = (),
    conflicts: Sequence[str] = (),
    threads: int | None = None,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> ImportReport:
    """Store a PEFT adapter of `base` under `reference`, a name with a version.

    The delta is what turns base into base with the adapter merged into it. Factors are stored as they are; what is no
    product of factors (DoRA, `modules_to_save`, biases) is stored as `diff` stores it, which also says
    what `on` and `conflicts` are. Raises AdapterRefused for what
    is not supported, BadAdapter with everything that does not fit, CheckpointNotFound, and what `diff` raises.
    """
    with ExitStack() as stack:
        before = base if isinstance(base, Checkpoint) else stack.enter_context(Checkpoint.open(base))
        files = (
            adapter
            if isinstance(adapter, Checkpoint)
            else stack.enter_context(Checkpoint.open(adapter, as_adapter=True))
        )
        after, notes = merge(before, open_adapter(files))
        told = diff(
            before,
            after,
            registry,
            reference,
            preset=preset,
            licence=licence,
            description=description,
            on=on,
            conflicts=conflicts,
            threads=threads,
            dry_run=dry_run,
            progress=progress,
        )
        ranks = after.ranks
        changed = after.changed
        return ImportReport(
            reference=told.reference,
            digest=told.digest,
            adapter=files.id,
            base=before.id,
            low_rank=sum(ranks.values()),
            full=len(changed & before.tensors.keys()) - sum(ranks.values()),
            added=len(changed - before.tensors.keys()),
            ranks={str(rank): ranks[rank] for rank in sorted(ranks)},
            adapter_size=sum(tensor.nbytes for tensor in files.tensors.values()),
            artifact_size=told.artifact_size,
            kinds=told.kinds,
            notes=notes,
            seconds=told.seconds,
            dry_run=told.dry_run,
        )
