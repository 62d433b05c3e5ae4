"""How often versions are fetched: counted in memory, written down now and then."""

from __future__ import annotations

import threading
from collections import Counter

from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite

from deltareg_registry.database import Database, now
from deltareg_registry.database.tables import pulls, repositories

__all__ = ["PullCounter"]


class PullCounter:
    """What one process has counted since it wrote it down last. Its methods may be called from any thread.

    A process that is killed loses what it counted in the last seconds; that is the price of not writing on each fetch.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counted: Counter[tuple[int, str]] = Counter()

    def count(self, repository: int, digest: str) -> None:
        """Note that a manifest of a repository was fetched."""
        with self._lock:
            self._counted[repository, digest] += 1

    def flush(self, database: Database) -> None:
        """Write down what was counted. Where the database does not answer, it is kept for the next time."""
        with self._lock:
            counted, self._counted = self._counted, Counter()
        if not counted:
            return
        try:
            with database.writing() as connection:
                # In one order, so that two processes do not wait for each other.
                for (repository, digest), count in sorted(counted.items()):
                    _add(connection, repository, digest, count)
        except BaseException:
            with self._lock:
                self._counted.update(counted)
            raise


def _add(connection: Connection, repository: int, digest: str, count: int) -> None:
    if connection.execute(repositories.select().where(repositories.c.id == repository)).one_or_none() is None:
        return  # it was removed meanwhile
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    values = {"repository": repository, "digest": digest, "count": count, "last": now()}
    adding = dialect.insert(pulls).values(values)
    more = {"count": pulls.c.count + adding.excluded.count, "last": adding.excluded.last}
    connection.execute(adding.on_conflict_do_update(index_elements=["repository", "digest"], set_=more))
