"""The application: every route of the server, with what they share."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

from deltareg.errors import translate_os_errors
from deltareg_registry import __version__, limits, problems
from deltareg_registry.access.policy import check_complete
from deltareg_registry.api import API_ROUTERS
from deltareg_registry.database import Database
from deltareg_registry.metrics import Metrics
from deltareg_registry.observing import Observed
from deltareg_registry.oci import OCI_ROUTERS
from deltareg_registry.pages import PAGE_ROUTERS, error_page
from deltareg_registry.readiness import Readiness
from deltareg_registry.settings import ServerSettings
from deltareg_registry.state import State
from deltareg_registry.storage import open_storage
from deltareg_registry.upkeep.background import background
from deltareg_registry.upkeep.health import health_router

__all__ = ["create_app", "open_state", "routes_of"]

ROUTERS: tuple[APIRouter, ...] = (health_router, *API_ROUTERS, *OCI_ROUTERS, *PAGE_ROUTERS)


def create_app(settings: ServerSettings, state: State | None = None) -> FastAPI:
    """The application of one process, over a database that is up to date. Closes the database when it ends."""
    opened = state or open_state(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        try:
            async with background(opened):
                yield
        finally:
            opened.database.close()

    app = FastAPI(
        title="deltareg registry",
        version=__version__,
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.registry = opened
    problems.install(app, error_page)
    limits.install(app, settings)
    # Added last, it stands outermost: what the limits refuse is seen too.
    app.add_middleware(Observed, metrics=opened.metrics)
    for router in ROUTERS:
        app.include_router(router)
    app.state.api_routes = [route for router in API_ROUTERS for route in router.routes]
    check_complete(routes_of(ROUTERS))
    return app


def open_state(settings: ServerSettings) -> State:
    """Open what a server works with, and bring the database up to date. Raises DeltaregError."""
    with translate_os_errors("make the data directory", settings.data):
        settings.data.mkdir(parents=True, exist_ok=True)
    database = Database(settings.database_url)
    database.upgrade()
    storage = open_storage(settings.storage, settings.data)
    return State(settings, database, storage, Metrics(database), Readiness(storage))


def routes_of(routers: Iterable[APIRouter]) -> Iterator[str]:
    """METHOD and path template of each route."""
    for route in (route for router in routers for route in router.routes):
        if isinstance(route, APIRoute):
            for method in sorted(set(route.methods or ()) - {"HEAD"}):
                yield f"{method} {route.path}"
