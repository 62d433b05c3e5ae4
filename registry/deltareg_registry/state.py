"""What every route works with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from fastapi import Request

from deltareg_registry.database import Database
from deltareg_registry.metrics import Metrics
from deltareg_registry.readiness import Readiness
from deltareg_registry.records.pulls import PullCounter
from deltareg_registry.settings import ServerSettings
from deltareg_registry.storage import Storage

__all__ = ["State", "address_of", "state_of"]


@dataclass(frozen=True)
class State:
    """The settings, the database and the storage of one server, and what it counts."""

    settings: ServerSettings
    database: Database
    storage: Storage
    metrics: Metrics
    readiness: Readiness
    pulls: PullCounter = field(default_factory=PullCounter)


def state_of(request: Request) -> State:
    """The state of the server that got a request."""
    return cast(State, request.app.state.registry)


def address_of(request: Request) -> str | None:
    """Where a request comes from, as the audit log has it."""
    return None if request.client is None else request.client.host
