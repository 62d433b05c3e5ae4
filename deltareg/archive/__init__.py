"""Archives: deltas in one file, for machines that no network joins."""

from __future__ import annotations

from deltareg.archive.exporting import export_archive
from deltareg.archive.importing import import_archive
from deltareg.archive.report import ArchivedName, ArchiveReport

__all__ = ["ArchiveReport", "ArchivedName", "export_archive", "import_archive"]
