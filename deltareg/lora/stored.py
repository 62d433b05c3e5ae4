"""The adapter that a delta is, where its records are an adapter's factors: for others who know no deltas."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from deltareg.catalog import Registry
from deltareg.lora.config import CONFIG_FILE
from deltareg.lora.exporting import WEIGHTS_FILE, export_lora
from deltareg.manifest import TensorEntry
from deltareg.names import Reference

__all__ = ["stored_adapter"]


def stored_adapter(reference: Reference, registry: Registry, folder: Path) -> Mapping[str, Path]:
    """Write a delta's own factors into `folder`, as `peft` loads them; return the files by name.

    No files where an adapter would not be the whole delta. Raises as `export_lora` does.
    """
    changed = [entry for entry in registry.artifact(reference).inventory.tensors if entry.kind != "zero"]
    ranks = [entry.rank for entry in changed if entry.rank]
    if not ranks or not all(map(_may_go_along, changed)):
        return {}
    out = folder / "adapter"
    report = export_lora(reference, registry, out, rank=max(ranks))
    if report.left_out or report.overwritten or not all(tensor.exact for tensor in report.tensors):
        return {}
    return {name: out / name for name in (CONFIG_FILE, WEIGHTS_FILE)}


def _may_go_along(entry: TensorEntry) -> bool:
    """Whether an adapter can have a tensor's delta as it is: factors, or a tensor that base lacks."""
    return bool(entry.rank) or (entry.base_dtype is None and entry.post_dtype is not None)
