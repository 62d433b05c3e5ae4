"""Regular tasks of a registry that has several processes: one of them does each, the others leave it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select, update

from deltareg_registry.database import from_now, now
from deltareg_registry.database.tables import upkeep
from deltareg_registry.records.namespaces import insert_if_absent

__all__ = ["Run", "claim_run", "end_run", "runs"]


@dataclass(frozen=True)
class Run:
    """The last run of a task."""

    task: str
    started: datetime
    ended: datetime | None
    fault: str | None


def claim_run(connection: Connection, task: str, seconds: float) -> bool:
    """Whether it is this process that is to do a task now: nobody has begun it in the last `seconds`.

    A process that is killed meanwhile holds nobody up for longer than that. The first time comes after `seconds` too.
    """
    if insert_if_absent(connection, upkeep, {"task": task, "started": now()}):
        return False
    # One statement: of two processes that come at once, the second finds the row changed.
    claim = update(upkeep).where(upkeep.c.task == task, upkeep.c.started <= from_now(-seconds))
    return connection.execute(claim.values(started=now())).rowcount == 1


def end_run(connection: Connection, task: str, fault: str | None = None) -> None:
    """Write down that a task ended, and what went wrong."""
    connection.execute(update(upkeep).where(upkeep.c.task == task).values(ended=now(), fault=fault))


def runs(connection: Connection) -> list[Run]:
    """The last run of each task."""
    rows = connection.execute(select(upkeep).order_by(upkeep.c.task))
    return [
        Run(
            row.task,
            datetime.fromisoformat(row.started),
            None if row.ended is None else datetime.fromisoformat(row.ended),
            row.fault,
        )
        for row in rows
    ]
