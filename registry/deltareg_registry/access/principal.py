"""Who asks, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from pydantic import Field

from deltareg.manifest import Document

__all__ = ["ANONYMOUS", "Action", "Principal", "Role", "Scope", "role_for", "role_of"]

Action = Literal["read", "publish", "own"]
"""What a token may be limited to; each of them includes those before it."""


class Role(IntEnum):
    """What somebody is in a namespace; a higher one includes those below."""

    NONE = 0
    READER = 1
    PUBLISHER = 2
    OWNER = 3

    @property
    def label(self) -> str:
        """The role as documents have it."""
        return self.name.lower()


_ROLES = {"read": Role.READER, "publish": Role.PUBLISHER, "own": Role.OWNER}


class Scope(Document):
    """What a token may do at most, in one namespace or (`*`) in all that its user has a role in."""

    namespace: str = Field(description="a namespace, or * for all")
    action: Action = Field(description="read, publish or own: each includes those before it")


@dataclass(frozen=True)
class Principal:
    """Whoever makes a request: a user with a token, or nobody known."""

    user: str | None = None
    admin: bool = False
    token: str | None = None
    """The token's id."""
    token_name: str | None = None
    expires: str | None = None
    scopes: tuple[Scope, ...] | None = None
    """None: all that the user may do."""
    roles: dict[str, Role] = field(default_factory=dict[str, Role])
    """Those in the namespaces that the user is a member of."""

    @property
    def signed_in(self) -> bool:
        """Whether it is known who asks."""
        return self.user is not None

    @property
    def unlimited(self) -> bool:
        """Whether the token may do all that its user may: only then can it make tokens and rule the registry."""
        return self.signed_in and self.scopes is None

    def role_in(self, namespace: str, *, public: bool) -> Role:
        """The role in a namespace, which everybody may read where it is `public`."""
        least = Role.READER if public else Role.NONE
        if self.user is None:
            return least
        own = Role.OWNER if self.admin else self.roles.get(namespace, Role.NONE)
        if self.scopes is not None:
            granted = [_ROLES[scope.action] for scope in self.scopes if scope.namespace in ("*", namespace)]
            own = min(own, max(granted, default=Role.NONE))
        return max(own, least)


ANONYMOUS = Principal()


def role_of(text: str) -> Role:
    """The role that documents call `text`: reader, publisher or owner. Raises KeyError."""
    return {role.label: role for role in Role if role is not Role.NONE}[text]


def role_for(action: Action) -> Role:
    """The role that whoever may do `action` has at least."""
    return _ROLES[action]
