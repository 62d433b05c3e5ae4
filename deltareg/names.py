"""References to deltas: `namespace/name:version`, `namespace/name:channel`, `namespace/name@sha256:…`.

And the short texts that go with names: licences, and reasons for yanking and deprecating.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Iterable
from dataclasses import dataclass

import semver

from deltareg.digest import Digest, parse_digest
from deltareg.errors import BadName, InvalidArgument

__all__ = [
    "LATEST",
    "LOCAL",
    "Reference",
    "as_reason",
    "is_channel",
    "is_licence",
    "is_version",
    "latest_of",
    "parse_licence",
    "parse_reason",
    "parse_reference",
    "version_key",
]

LOCAL = "local"
"""What recipes and locks call the registry of this machine, where others have the name of a remote."""

LATEST = "latest"
"""The channel that a reference without a version means: the highest version that is no pre-release and not yanked."""

_PART = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_PART_LIMIT = 64
_CHANNEL = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
_VERSION_LIMIT = 64
_LICENCE = re.compile(r"[A-Za-z0-9.+() -]+")
_LICENCE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")
_LICENCE_LIMIT = 128
_REASON_LIMIT = 1000
_OPERATORS = ("AND", "OR", "WITH")
_HINT = "write namespace/name:1.2.3, namespace/name:channel or namespace/name@sha256:…"


@dataclass(frozen=True, order=True)
class Reference:
    """A delta's name with at most one of tag (a version or a channel) and digest."""

    namespace: str
    name: str
    tag: str | None = None
    digest: Digest | None = None

    @property
    def repository(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    @property
    def version(self) -> str | None:
        """The tag, if it is a version."""
        return self.tag if self.tag is not None and is_version(self.tag) else None

    def __str__(self) -> str:
        if self.digest is not None:
            return f"{self.repository}@{self.digest}"
        return self.repository if self.tag is None else f"{self.repository}:{self.tag}"

    def with_tag(self, tag: str) -> Reference:
        """The same name with another tag."""
        return Reference(self.namespace, self.name, tag)


def is_channel(text: str) -> bool:
    """Whether `text` is written as a channel: a lower-case word, `latest` among them."""
    return len(text) <= _VERSION_LIMIT and _CHANNEL.fullmatch(text) is not None


def is_version(text: str) -> bool:
    """Whether `text` is a version: SemVer without build metadata."""
    return len(text) <= _VERSION_LIMIT and semver.Version.is_valid(text) and "+" not in text


def version_key(text: str) -> semver.Version:
    """The sort key of a version."""
    return semver.Version.parse(text)


def latest_of(tags: Iterable[str], yanked: Container[str] = ()) -> str | None:
    """The highest release among `tags`; the highest pre-release if there is no release; None if no tag is a version.

    Those that are `yanked` count only where all versions are.
    """
    everything = [tag for tag in tags if is_version(tag)]
    versions = [tag for tag in everything if tag not in yanked] or everything
    releases = [tag for tag in versions if version_key(tag).prerelease is None]
    return max(releases or versions, key=version_key, default=None)


def parse_reference(text: str, *, version_required: bool = False) -> Reference:
    """Parse a reference.

    With `version_required` only `namespace/name:version` is taken, as publishing needs it. Raises BadName.
    """
    rest, at, digest_text = text.partition("@")
    digest = parse_digest(digest_text) if at else None
    repository, colon, tag = rest.partition(":")
    namespace, slash, name = repository.partition("/")
    if not slash:
        raise BadName(f"{text!r} has no namespace", hint=_HINT)
    for role, part in (("namespace", namespace), ("name", name)):
        if len(part) > _PART_LIMIT or _PART.fullmatch(part) is None:
            raise BadName(
                f"{role} {part!r} in {text!r} is not allowed",
                cause=f"at most {_PART_LIMIT} lower-case letters and digits, single '.', '_' or '-' between them",
                hint=_HINT,
            )
    if colon and not is_version(tag) and not is_channel(tag):
        raise BadName(
            f"{tag!r} in {text!r} is neither a version nor a channel",
            cause="build metadata (+…) is not allowed" if "+" in tag else None,
            hint="versions are SemVer (1.2.3, 1.2.3-rc.1); channels are lower-case words (latest, prod)",
        )
    if colon and digest is not None:
        raise BadName(f"{text!r} has both a tag and a digest", hint="give one of them")
    if version_required and (not colon or not is_version(tag)):
        raise BadName(f"{text!r} does not name a version", hint="to publish, write namespace/name:1.2.3")
    return Reference(namespace, name, tag if colon else None, digest)


def is_licence(text: str) -> bool:
    """Whether `text` is written as an SPDX expression, such as `MIT OR Apache-2.0`, or as an id of the hub."""
    if len(text) > _LICENCE_LIMIT or _LICENCE.fullmatch(text) is None:
        return False
    depth = 0
    open_ended = True  # an id or a parenthesis has to come
    for token in text.replace("(", " ( ").replace(")", " ) ").split():
        fits = open_ended
        if token == "(":
            depth += 1
        elif token == ")":
            fits = not open_ended and depth > 0
            depth -= 1
        elif token in _OPERATORS:
            fits, open_ended = not open_ended, True
        else:
            fits, open_ended = open_ended and _LICENCE_ID.fullmatch(token) is not None, False
        if not fits:
            return False
    return depth == 0 and not open_ended


def parse_licence(text: str) -> str:
    """Return `text` if it is written as a licence. Raises InvalidArgument."""
    if not is_licence(text):
        raise InvalidArgument(
            f"{text[:_LICENCE_LIMIT]!r} is not written as a licence",
            cause=f"at most {_LICENCE_LIMIT} letters, digits, '.', '+' and '-', joined by AND, OR or WITH",
            hint="write an SPDX identifier such as apache-2.0; other where none fits",
        )
    return text


def parse_reason(text: str) -> str:
    """Return `text`, without spaces around it, if it may be why a version is yanked or deprecated.

    Raises InvalidArgument.
    """
    reason = text.strip()
    if not reason or len(reason) > _REASON_LIMIT or not all(map(_is_printed, reason)):
        raise InvalidArgument(
            f"{reason[:_LICENCE_LIMIT]!r} is no reason" if reason else "the reason is empty",
            cause=f"a reason is one line of text, of at most {_REASON_LIMIT} characters",
            hint="say in a sentence what is wrong with the version, and which one to take instead",
        )
    return reason


def as_reason(text: str) -> str:
    """What can be taken of a reason that came from elsewhere: one line, not too long; "" where nothing is left."""
    return "".join(char if _is_printed(char) else " " for char in text[:_REASON_LIMIT]).strip()


def _is_printed(char: str) -> bool:
    return unicodedata.category(char) not in ("Cc", "Cs", "Zl", "Zp")
