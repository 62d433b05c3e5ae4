"""Which repository of the Hub a delta has, and back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from deltareg.errors import BadName, UsageError
from deltareg.names import parse_reference
from deltareg.remote.network import shown

__all__ = ["HubPlace", "parse_place"]

_SEPARATOR = "__"
_OWNER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
_PREFIX = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_LIMIT = 96
_VISIBILITIES = ("private", "public")


@dataclass(frozen=True)
class HubPlace:
    """`hf://owner[/prefix]`: an account's or an organization's repositories, or those of them with a prefix.

    `acme/search` at `hf://acme` is the repository `acme/search`, at `hf://other` it is `other/acme__search`, and at
    `hf://other/team` it is `other/team__acme__search`. Two underscores separate since no part of a delta's name has
    them, and the Hub refuses `--`: so the way back is unambiguous.
    """

    owner: str
    prefix: str | None = None
    public: bool = False
    """Whether everybody may read repositories that are made here."""

    @property
    def url(self) -> str:
        """The place as a URL, always written alike."""
        path = self.owner if self.prefix is None else f"{self.owner}/{self.prefix}"
        return f"hf://{path}{'?visibility=public' if self.public else ''}"

    def repository_of(self, delta: str) -> str:
        """The Hub's repository of `namespace/name`. Raises BadName for what is no such, or is too long for the Hub."""
        reference = parse_reference(delta)
        parts = [reference.namespace, reference.name]
        if self.prefix is not None:
            parts.insert(0, self.prefix)
        elif reference.namespace == self.owner.lower():
            parts = [reference.name]
        name = _SEPARATOR.join(parts)
        if len(name) > _LIMIT or name.endswith(".git"):
            raise BadName(
                f"{delta} cannot have a repository at {self.url}: the Hub does not take the name {name}",
                cause=f"it takes at most {_LIMIT} characters, and none that ends in .git",
                hint="choose a shorter name",
            )
        return f"{self.owner}/{name}"

    def delta_of(self, repository: str) -> str | None:
        """The `namespace/name` that has this repository here; None if none can have it."""
        owner, _, name = repository.partition("/")
        parts = name.split(_SEPARATOR)
        if self.prefix is not None:
            if parts[0] != self.prefix or len(parts) != 3:
                return None
            parts = parts[1:]
        elif len(parts) == 1:
            parts.insert(0, self.owner.lower())
        delta = "/".join(parts)
        try:
            ours = owner.lower() == self.owner.lower() and self.repository_of(delta).partition("/")[2] == name
        except BadName:
            return None
        return delta if ours else None


def parse_place(url: str) -> HubPlace:
    """Parse `hf://owner[/prefix][?visibility=public]`. Raises UsageError."""
    parts = urlsplit(url)
    owner, prefix = parts.netloc, parts.path.strip("/")
    fault = None
    if "@" in url:
        fault = "a URL holds no password and no revision"
    elif parts.fragment or _OWNER.fullmatch(owner) is None or "--" in owner or ".." in owner:
        fault = f"{owner!r} is no account of the Hub"
    elif prefix and (_PREFIX.fullmatch(prefix) is None or len(prefix) > _LIMIT // 2):
        fault = f"{prefix!r} is no prefix: lower-case letters and digits, single '.', '_' or '-' between them"
    query = parse_qs(parts.query, keep_blank_values=True)
    visibility = query.pop("visibility", ["private"])[-1]
    if fault is None and (query or visibility not in _VISIBILITIES):
        fault = f"{parts.query!r} is neither visibility=public nor visibility=private"
    if fault is not None:
        raise UsageError(
            f"{shown(url)!r} is no remote on the Hub: {fault}",
            hint="write hf://owner or hf://owner/prefix, and ?visibility=public for repositories that all may read",
        )
    return HubPlace(owner, prefix or None, visibility == "public")
