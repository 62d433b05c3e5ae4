"""Users, whom administrators look after."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import Field

from deltareg.manifest import Document
from deltareg_registry.api.asking import PROBLEMS, Asking, problems
from deltareg_registry.api.bodies import bounded
from deltareg_registry.api.documents import DOCUMENT_LIMIT, NAME, After, Change, Limit, Shown, UserPath
from deltareg_registry.api.tokens import GivenToken, NewToken, check_end, give_token
from deltareg_registry.records.users import User, add_user, change_user, list_users
from deltareg_registry.state import address_of, state_of

__all__ = ["UserDetails", "UserList", "user_details", "users_router"]

users_router = APIRouter(
    prefix="/api/v1/users",
    tags=["users"],
    responses=PROBLEMS | problems(413),
    route_class=bounded(DOCUMENT_LIMIT),
)


class UserDetails(Document):
    """A user of the registry."""

    name: str
    admin: bool = Field(description="whether the user is an administrator of the registry")
    created: str
    disabled: str | None = Field(description="since when the user is shut out")


class UserList(Shown):
    """A page of the users."""

    users: list[UserDetails]


class NewUser(Change):
    """A user who is wanted."""

    name: str = Field(pattern=NAME, max_length=64)
    admin: bool = False


class UserChange(Change):
    """What is to change; what is left out, or null, stays."""

    admin: bool | None = None
    disabled: bool | None = None


@users_router.get("")
def users(request: Request, asking: Asking, cursor: After = None, limit: Limit = 100) -> UserList:
    """The users by name."""
    with state_of(request).database.reading() as connection:
        found = list_users(connection, after=cursor or "", limit=limit + 1)
    page = [user_details(user) for user in found[:limit]]
    return UserList(users=page, cursor=page[-1].name if len(found) > limit else None)


@users_router.post("", status_code=201)
def create_user(request: Request, asking: Asking, wanted: NewUser) -> UserDetails:
    """Make a user. They need a token before they can do anything."""
    with state_of(request).database.writing() as connection:
        made = add_user(connection, asking, wanted.name, admin=wanted.admin, address=address_of(request))
        return user_details(made)


@users_router.patch("/{user}")
def patch_user(request: Request, asking: Asking, user: UserPath, wanted: UserChange) -> UserDetails:
    """Make a user an administrator or none; shut them out, with all their tokens, or let them in again."""
    with state_of(request).database.writing() as connection:
        address = address_of(request)
        done = change_user(connection, asking, user, admin=wanted.admin, disabled=wanted.disabled, address=address)
        return user_details(done)


@users_router.post("/{user}/tokens", status_code=201)
def create_user_token(request: Request, asking: Asking, user: UserPath, wanted: NewToken) -> GivenToken:
    """Make a token for a user, who is worth with it what the user may do. It is shown this once."""
    if user == asking.user:
        check_end(asking, wanted)
    with state_of(request).database.writing() as connection:
        return give_token(connection, asking, user, wanted, address_of(request))


def user_details(user: User) -> UserDetails:
    """A user as a document."""
    return UserDetails(name=user.name, admin=user.admin, created=user.created, disabled=user.disabled)
