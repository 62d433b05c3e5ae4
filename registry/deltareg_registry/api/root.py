"""What the server is, and who asks."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from deltareg.manifest import Document
from deltareg_registry import __version__
from deltareg_registry.access.principal import Scope
from deltareg_registry.api.asking import PROBLEMS, Asking
from deltareg_registry.api.description import describe

__all__ = ["root_router"]

root_router = APIRouter(prefix="/api/v1", tags=["registry"], responses=PROBLEMS)


class About(Document):
    """What answers at this URL."""

    registry: str = "deltareg"
    api_version: int = 1
    version: str = __version__


class TokenDetails(Document):
    """The token of a request."""

    id: str
    name: str
    expires: str | None = None
    scopes: list[Scope] | None = Field(default=None, description="null: all that the user may do")


class Membership(Document):
    """A role in a namespace."""

    namespace: str
    role: str = Field(description="reader, publisher or owner")


class WhoAmI(Document):
    """Who a token stands for."""

    user: str
    admin: bool = Field(description="whether the user is an administrator of the registry")
    token: TokenDetails
    namespaces: list[Membership]


@root_router.get("")
def about(asking: Asking) -> About:
    """What answers here."""
    return About()


@root_router.get("/whoami")
def who_am_i(asking: Asking) -> WhoAmI:
    """Who the token of the request stands for."""
    assert asking.user is not None and asking.token is not None
    return WhoAmI(
        user=asking.user,
        admin=asking.admin,
        token=TokenDetails(
            id=asking.token,
            name=asking.token_name or "",
            expires=asking.expires,
            scopes=None if asking.scopes is None else list(asking.scopes),
        ),
        namespaces=[
            Membership(namespace=namespace, role=role.label) for namespace, role in sorted(asking.roles.items())
        ],
    )


@root_router.get("/openapi.json", include_in_schema=False)
def openapi(request: Request, asking: Asking) -> dict[str, Any]:
    """The description of this interface."""
    app = request.app
    if not hasattr(app.state, "description"):
        app.state.description = describe(app.state.api_routes)
    return app.state.description
