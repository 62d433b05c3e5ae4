"""The database: SQLite beside the blobs, or PostgreSQL for many processes."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from deltareg.errors import (
    Busy,
    DeltaregError,
    DiskFull,
    InvalidArgument,
    NotAllowed,
    RemoteUnavailable,
)

__all__ = ["SCHEMA", "Database", "at", "from_now", "now", "parse_time"]

SCHEMA = "0001"
"""The last of the migrations: the tables that this program works with."""

_BUSY_SECONDS = 30
_CONNECT_SECONDS = 10
_POOL = 20
_MIGRATION_LOCK = 7_265_201
_ONE_STATE = "REPEATABLE READ"


class Database:
    """Connections to the database at a SQLAlchemy URL. Its methods may be called from any thread.

    Raises DeltaregError for a URL that is none, RemoteUnavailable where the database does not answer.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
            self.engine = _engine(parsed.render_as_string(hide_password=False), sqlite=parsed.drivername == "sqlite")
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
            raise DeltaregError(
                "the URL of the database is not understood",
                cause=str(error),
                hint="write postgresql://user:password@host/name, or leave it out for SQLite",
            ) from error
        self.label = parsed.render_as_string(hide_password=True)
        self.is_sqlite = parsed.drivername == "sqlite"
        # SQLite has one writer. Threads that wait for it here wait in turn; inside SQLite they would poll.
        self._writer = threading.Lock() if self.is_sqlite else None
        # PostgreSQL would let each statement of a transaction see another state.
        self._reader = self.engine if self.is_sqlite else self.engine.execution_options(isolation_level=_ONE_STATE)

    @contextmanager
    def reading(self) -> Generator[Connection]:
        """A transaction that only reads, and sees one state of the database."""
        with _translated(self.label), self._reader.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self) -> Generator[Connection]:
        """A transaction that is committed at the end of the block, or as a whole undone where that raises."""
        if self._writer is None:
            with _translated(self.label), self.engine.connect() as connection, connection.begin():
                yield connection
            return
        with self._writer, _translated(self.label):
            connection = self.engine.connect().execution_options(deltareg_writes=True)
            with connection, connection.begin():
                yield connection

    def upgrade(self) -> None:
        """Bring the tables to the state that this program knows; several processes may try at once.

        Raises UnsupportedFormat where a newer program has brought them further.
        """
        if self._is_current():
            return
        from deltareg_registry.database.migrating import migrate

        with (
            _translated(self.label),
            self.engine.connect().execution_options(deltareg_writes=True) as connection,
        ):
            if self.is_sqlite:
                migrate(connection)
                return
            connection.execute(text("select pg_advisory_lock(:key)"), {"key": _MIGRATION_LOCK})
            connection.commit()
            try:
                migrate(connection)
            finally:
                connection.rollback()
                connection.execute(text("select pg_advisory_unlock(:key)"), {"key": _MIGRATION_LOCK})
                connection.commit()

    def _is_current(self) -> bool:
        with self.reading() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return False
            return connection.execute(text("select version_num from alembic_version")).scalars().all() == [SCHEMA]

    def connections(self) -> tuple[int, int]:
        """How many connections are kept, and how many of them are in use."""
        pool = cast(QueuePool, self.engine.pool)
        used = pool.checkedout()
        return used + pool.checkedin(), used

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def now() -> str:
    """The time as the tables have it."""
    return at(datetime.now(UTC))


def at(time: datetime) -> str:
    """A time with a zone as the tables have it: RFC 3339, UTC, microseconds."""
    # Not by strftime: it writes years before 1000 with fewer digits, which would follow those of today.
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def from_now(seconds: float) -> str:
    """The time in so many seconds as the tables have it; of a negative number, so long ago."""
    return at(datetime.now(UTC) + timedelta(seconds=seconds))


def parse_time(text: str) -> str:
    """A time that somebody wrote (RFC 3339; a date alone is its beginning in UTC), as the tables have it.

    Raises InvalidArgument.
    """
    try:
        time = datetime.fromisoformat(text)
        return at(time if time.tzinfo is not None else time.replace(tzinfo=UTC))
    except (ValueError, OverflowError) as error:
        raise InvalidArgument(
            f"{text[:40]!r} is not a time", cause=str(error), hint="write 2030-01-31 or 2030-01-31T12:00:00Z"
        ) from error


def _engine(url: str, *, sqlite: bool) -> Engine:
    if not sqlite:
        # A connection that PostgreSQL closed meanwhile is noticed before it is used.
        return create_engine(
            url,
            pool_pre_ping=True,
            pool_size=_POOL,
            max_overflow=_POOL,
            pool_timeout=_BUSY_SECONDS,
            connect_args={"connect_timeout": _CONNECT_SECONDS},
        )
    engine = create_engine(
        url,
        pool_size=_POOL,
        max_overflow=2 * _POOL,
        pool_timeout=_BUSY_SECONDS,
        connect_args={"timeout": _BUSY_SECONDS},
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver's own transactions begin late: a reader that turns into a writer would fail instead of wait.
    connection.isolation_level = None
    for pragma in ("journal_mode = wal", "synchronous = full", "foreign_keys = on", "mmap_size = 268435456"):
        connection.execute(f"pragma {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("deltareg_writes", False)
    connection.exec_driver_sql("begin immediate" if writes else "begin")


@contextmanager
def _translated(label: str) -> Generator[None]:
    try:
        yield
    except DBAPIError as error:
        told = str(error.orig).strip().splitlines()[0] if error.orig is not None else ""
        raise _error_of(error, told, label) from error
    except PoolTimeout as error:
        told = "every connection to the database is in use"
        raise Busy(told, cause=str(error), hint="try again", retry_after=1) from error
    except SQLAlchemyError as error:
        raise DeltaregError("the database failed", cause=type(error).__name__) from error


def _error_of(error: DBAPIError, told: str, label: str) -> DeltaregError:
    code: str = getattr(error.orig, "sqlite_errorname", None) or getattr(error.orig, "sqlstate", None) or ""
    if isinstance(error, DataError) and "NUL" in told:
        return InvalidArgument("a text has a character that nothing here has: NUL")
    if code.startswith("SQLITE_FULL") or code == "53100":
        return DiskFull("the database of the registry has no room left", cause=told, hint="tell whoever runs it")
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "40")):
        return Busy("the database is busy", cause=told, hint="try again")
    if code.startswith(("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_CANTOPEN")) or code == "42501":
        return NotAllowed("the database may not be written", cause=told, hint="check who owns it")
    if error.connection_invalidated or isinstance(error, OperationalError):
        return RemoteUnavailable("the registry's database does not answer", cause=told, hint="try again later")
    return DeltaregError("the database failed", cause=told)
