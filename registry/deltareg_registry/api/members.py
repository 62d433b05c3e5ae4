"""Members of namespaces."""

from __future__ import annotations

from fastapi import APIRouter, Request

from deltareg.errors import NotSignedIn
from deltareg.manifest import Document
from deltareg_registry.access.principal import role_of
from deltareg_registry.api.asking import PROBLEMS, Asking, problems
from deltareg_registry.api.bodies import bounded
from deltareg_registry.api.documents import DOCUMENT_LIMIT, Change, NamespacePath, RoleText, UserPath
from deltareg_registry.records.members import Member, list_members, remove_member, set_member
from deltareg_registry.state import address_of, state_of

__all__ = ["MemberList", "member_details", "members_router"]

members_router = APIRouter(
    prefix="/api/v1/namespaces/{namespace}/members",
    tags=["members"],
    responses=PROBLEMS | problems(413),
    route_class=bounded(DOCUMENT_LIMIT),
)


class MemberDetails(Document):
    """A member of a namespace."""

    user: str
    role: RoleText
    since: str


class MemberList(Document):
    """The members of a namespace."""

    members: list[MemberDetails]


class NewRole(Change):
    """A role that somebody is to have."""

    role: RoleText


@members_router.get("")
def members(request: Request, asking: Asking, namespace: NamespacePath) -> MemberList:
    """The members of a namespace that you may read; who is not signed in is not told, even where it is public."""
    if not asking.signed_in:
        raise NotSignedIn("that needs a token", hint="deltareg login URL")
    with state_of(request).database.reading() as connection:
        return MemberList(members=[member_details(member) for member in list_members(connection, namespace)])


@members_router.put("/{user}")
def put_member(
    request: Request, asking: Asking, namespace: NamespacePath, user: UserPath, wanted: NewRole
) -> MemberDetails:
    """Give a user a role in a namespace, instead of the one that they have."""
    with state_of(request).database.writing() as connection:
        role = role_of(wanted.role)
        return member_details(set_member(connection, asking, namespace, user, role, address=address_of(request)))


@members_router.delete("/{user}", status_code=204)
def delete_member(request: Request, asking: Asking, namespace: NamespacePath, user: UserPath) -> None:
    """Take a user's role in a namespace away. Its last owner stays."""
    with state_of(request).database.writing() as connection:
        remove_member(connection, asking, namespace, user, address=address_of(request))


def member_details(member: Member) -> MemberDetails:
    """A member as a document."""
    return MemberDetails(user=member.user, role=role_of(member.role).label, since=member.since)  # type: ignore[arg-type]
