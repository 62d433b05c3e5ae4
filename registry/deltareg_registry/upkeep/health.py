"""Whether the server lives, and whether it can work."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from sqlalchemy import text

from deltareg.manifest import Document
from deltareg_registry.access.principal import Principal
from deltareg_registry.authorise import authorise
from deltareg_registry.state import state_of

__all__ = ["health_router"]

health_router = APIRouter(tags=["operations"])


class Health(Document):
    """That the server answers."""

    status: str = "ok"


@health_router.get("/healthz")
async def alive() -> Health:
    """Whether the process answers."""
    return Health()


@health_router.get("/readyz")
def ready(request: Request, asking: Annotated[Principal, Depends(authorise)]) -> Health:
    """Whether the database answers."""
    with state_of(request).database.reading() as connection:
        connection.execute(text("select 1"))
    return Health()
