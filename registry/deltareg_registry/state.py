"""What every route works with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from fastapi import Request

from deltareg_registry.database import Database
from deltareg_registry.settings import ServerSettings
from deltareg_registry.storage import Storage

__all__ = ["State", "state_of"]


@dataclass(frozen=True)
class State:
    """The settings, the database and the storage of one server."""

    settings: ServerSettings
    database: Database
    storage: Storage


def state_of(request: Request) -> State:
    """The state of the server that got a request."""
    return cast(State, request.app.state.registry)
