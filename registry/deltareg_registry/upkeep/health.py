"""Whether the server lives, whether it can work, and what it counts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy import text

from deltareg.errors import DeltaregError, RemoteUnavailable
from deltareg.manifest import Document
from deltareg_registry.access.principal import Principal
from deltareg_registry.authorise import authorise
from deltareg_registry.metrics import METRICS_TYPE
from deltareg_registry.state import state_of

__all__ = ["health_router"]

health_router = APIRouter(tags=["operations"])


class Health(Document):
    """That the server answers."""

    status: str = "ok"


@health_router.get("/healthz")
async def alive() -> Health:
    """Whether the process answers. Nothing is asked for that: who is not alive is started anew, and that mends neither
    a database nor a storage."""
    return Health()


@health_router.get("/readyz")
def ready(request: Request, asking: Annotated[Principal, Depends(authorise)]) -> Health:
    """Whether database and storage answer; 503 and the reason where one does not."""
    state = state_of(request)
    with state.database.reading() as connection:
        connection.execute(text("select 1"))
    try:
        state.readiness.check()
    except DeltaregError as error:
        # Whatever it is that the storage lacks, the request was none the worse.
        raise RemoteUnavailable("the storage cannot be used", cause=error.message, hint=error.hint) from error
    return Health()


@health_router.get("/metrics", response_class=Response)
def metrics(request: Request, asking: Annotated[Principal, Depends(authorise)]) -> Response:
    """What this process counts, for Prometheus. Asked from the same machine, or by an administrator."""
    return Response(state_of(request).metrics.text(), media_type=METRICS_TYPE)
