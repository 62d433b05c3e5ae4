"""Searching remotes: those that can are asked, of the others the documents are read.

What was read of a version is kept as a row of the catalog in a database for each remote, so that the next search asks
for the names alone. That is sound, for a version never changes; what is said of it comes with the names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import perf_counter

from deltareg.catalog.catalog import DAMAGED, UNUSABLE, published
from deltareg.catalog.mounts import network_type
from deltareg.catalog.rows import CatalogRow, described, named
from deltareg.catalog.search import Query, SearchReport, SearchRow, ask
from deltareg.catalog.tables import memory_tables, open_tables
from deltareg.digest import sha256
from deltareg.errors import DeltaregError, NotAllowed, RemoteUnavailable
from deltareg.remote.protocol import Remote, RemoteEntry, is_searchable
from deltareg.remote.verified import read_blob, read_manifest
from deltareg.store import FileLock, parse_manifest
from deltareg.threads import in_order

__all__ = ["RemoteCatalog", "search_remotes"]

_THREADS = 8
_CONFIG_LIMIT = 16 << 20
_BUSY_SECONDS = 10.0
_FITS = ("identical", "homologous", "adaptable", None)


class RemoteCatalog:
    """The rows of a remote that cannot search. They are kept in the directory `cache`, where it can be written.

    Raises RemoteUnavailable and NotAllowed where the remote does not answer; what else is wrong with a version is its
    row's `fault`.
    """

    def __init__(self, remote: Remote, cache: Path | None = None, *, threads: int = _THREADS) -> None:
        self.remote = remote
        self._threads = threads
        self._cache = None if cache is None else _Cache(cache, remote.url)

    def rows(self, repository: str | None = None, *, most: int | None = None) -> list[CatalogRow]:
        """The published versions, of one repository or of all, by name and then by version.

        Where the documents of more than `most` versions were to be read, these have what their names tell.
        """
        return published(self._described(self.remote.list(repository), most))

    def search(self, query: Query) -> SearchReport:
        """The published versions that `query` asks for."""
        began = perf_counter()
        entries = [entry for entry in self.remote.list() if entry.reference.version is not None]
        if query.namespace is not None:
            wanted = query.namespace.casefold()
            entries = [entry for entry in entries if entry.reference.namespace == wanted]
        # Search gives those first that were put in last.
        entries.sort(key=lambda entry: (entry.created, entry.reference.repository, str(entry.reference)))
        rows = self._described(entries, None)
        with memory_tables() as tables:
            tables.update([], rows, self.remote.url)
            found = ask(tables, query)
        seconds = perf_counter() - began
        return found.model_copy(update={"seconds": seconds, "warnings": _faults(rows, self.remote.url)})

    def _described(self, entries: Iterable[RemoteEntry], most: int | None) -> list[CatalogRow]:
        entries = list(entries)
        kept = {} if self._cache is None else self._cache.rows()
        absent = [entry for entry in entries if entry.reference.version is not None and not _is_kept(entry, kept)]
        if most is not None and len(absent) > most:
            absent = []
        # One manifest may have several names.
        tasks = [partial(self._read, entry) for entry in {entry.digest: entry for entry in absent}.values()]
        read = {row.digest: row for row in in_order(tasks, self._threads)}
        found = [_told(entry, kept, read) for entry in entries]
        if self._cache is not None:
            fresh = {str(entry.reference) for entry in absent}
            self._cache.keep([row for row in found if row.reference in fresh and row.fault is None])
        return found

    def _read(self, entry: RemoteEntry) -> CatalogRow:
        repository = entry.reference.repository
        try:
            data = read_manifest(self.remote, repository, entry.digest)
            manifest = parse_manifest(data, what=f"the manifest of {entry.reference} from {self.remote.url}")
            return described(entry, manifest, lambda blob: read_blob(self.remote, repository, blob, _CONFIG_LIMIT))
        except (RemoteUnavailable, NotAllowed):
            raise
        except DeltaregError as error:
            return named(entry).model_copy(update={"fault": error.message})


class _Cache:
    """What was read of the versions of one remote. A cache that cannot be used is empty, and keeps nothing."""

    def __init__(self, directory: Path, url: str) -> None:
        self._url = url
        self._path = directory / f"{sha256(url.encode()).removeprefix('sha256:')[:24]}.db"
        self._lock = FileLock(self._path.with_suffix(".lock"))
        self._usable = network_type(directory) is None

    def rows(self) -> dict[str, CatalogRow]:
        if not self._usable or not self._path.exists():
            return {}
        with suppress(*DAMAGED, *UNUSABLE), self._lock.shared(), open_tables(self._path, _BUSY_SECONDS) as tables:
            if tables.source() == self._url:
                return {row.reference: row for row in tables.rows(None)}
        return {}

    def keep(self, rows: list[CatalogRow]) -> None:
        if not self._usable or not rows:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError:
            return
        with suppress(DeltaregError, *UNUSABLE), self._lock.exclusive():
            try:
                self._add(rows)
            except DAMAGED:
                for suffix in ("", "-wal", "-shm", "-journal"):
                    self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
                self._add(rows)

    def _add(self, rows: list[CatalogRow]) -> None:
        with open_tables(self._path, _BUSY_SECONDS) as tables:
            tables.prepare()
            tables.update([], rows, self._url)


def search_remotes(
    remotes: Mapping[str, Remote], query: Query, cache: Path | None = None, *, threads: int = _THREADS
) -> SearchReport:
    """Ask several remotes, by name, at once. Rows and warnings say of which remote they are.

    Of several, one that does not answer is a warning; where none answers, and with one alone, its error is raised.
    """
    began = perf_counter()
    found: dict[str, SearchReport] = {}
    failed: dict[str, DeltaregError] = {}
    with ThreadPoolExecutor(max(1, len(remotes)), thread_name_prefix="search") as pool:
        begun = {name: pool.submit(_asked, remote, query, cache, threads) for name, remote in remotes.items()}
        for name, future in begun.items():
            try:
                found[name] = future.result()
            except DeltaregError as error:
                failed[name] = error
    if failed and not found:
        raise next(iter(failed.values()))
    rows = [row.model_copy(update={"remote": name}) for name, report in found.items() for row in report.results]
    return SearchReport(
        results=_best(rows)[: query.limit],
        total=sum(report.total for report in found.values()),
        total_is_exact=all(report.total_is_exact for report in found.values()),
        seconds=perf_counter() - began,
        warnings=[
            *(f"{name} did not answer: {error.message}" for name, error in failed.items()),
            *(f"{name}: {warning}" for name, report in found.items() for warning in report.warnings),
        ],
    )


def _asked(remote: Remote, query: Query, cache: Path | None, threads: int) -> SearchReport:
    if is_searchable(remote):
        return remote.search(query)
    return RemoteCatalog(remote, cache, threads=threads).search(query)


def _best(rows: Iterable[SearchRow]) -> list[SearchRow]:
    """Best fit first, then newest first."""
    newest = sorted(rows, key=lambda row: row.created, reverse=True)
    return sorted(newest, key=lambda row: _FITS.index(row.fit))


def _is_kept(entry: RemoteEntry, kept: Mapping[str, CatalogRow]) -> bool:
    row = kept.get(str(entry.reference))
    return row is not None and row.digest == entry.digest


def _told(entry: RemoteEntry, kept: Mapping[str, CatalogRow], read: Mapping[str, CatalogRow]) -> CatalogRow:
    """The row of a name: what its documents tell, where they were read, and what its registry says of it today."""
    name = named(entry)
    known = kept.get(name.reference) if _is_kept(entry, kept) else read.get(entry.digest)
    if known is None:
        return name
    today = ("reference", "created", "manifest_size", "namespace", "yanked", "deprecated")
    return known.model_copy(update={field: getattr(name, field) for field in today})


def _faults(rows: Iterable[CatalogRow], url: str) -> list[str]:
    faulty = [row for row in rows if row.fault is not None]
    if not faulty:
        return []
    more = f", and {len(faulty) - 1} more" if len(faulty) > 1 else ""
    return [f"{faulty[0].reference}{more} cannot be read at {url}: {faulty[0].fault}"]
