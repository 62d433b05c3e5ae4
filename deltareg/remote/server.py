"""A deltareg server as a remote: bytes by the OCI protocol under `/v2/`, names by the server's own `/api/v1/`."""

from __future__ import annotations

import builtins
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from pydantic import Field

from deltareg.catalog import SearchReport
from deltareg.catalog.search import Query
from deltareg.digest import Digest, parse_digest
from deltareg.errors import BadManifest, BadName, NotAllowed, NotFound
from deltareg.manifest import MANIFEST_TYPE, Descriptor, Document, parse
from deltareg.names import LATEST, Reference, parse_reason, parse_reference
from deltareg.progress import Progress
from deltareg.remote.answers import Answer
from deltareg.remote.http import HttpClient
from deltareg.remote.network import shown
from deltareg.remote.oci import OciClient
from deltareg.remote.protocol import Capabilities, RemoteEntry
from deltareg.store import MANIFEST_LIMIT, parse_manifest

__all__ = ["ServerRemote"]

_INDEX_LIMIT = 1 << 30
_LIST_LIMIT = 64 << 20
_BATCH = 1000
_MOST_RESULTS = 1000
"""That the server gives at once."""
_PUBLISHING = ("publisher", "owner")

Answered = TypeVar("Answered", bound=Document)


class _Named(Document):
    """One name, as the server tells of it."""

    reference: str
    digest: str
    created: str = ""
    yanked: str | None = None
    deprecated: str | None = None

    def entry(self, size: int) -> RemoteEntry:
        return RemoteEntry(
            reference=parse_reference(self.reference),
            digest=parse_digest(self.digest),
            size=size,
            created=self.created,
            yanked=self.yanked,
            deprecated=self.deprecated,
        )


class _Entry(_Named):
    size: int = Field(ge=0)


class _Line(_Named):
    """A line of the index, whose `size` would be that of the whole artifact."""

    manifest_size: int = Field(ge=0)


class _Entries(Document):
    entries: list[_Entry]


class _Missing(Document):
    missing: list[str]


class _Found(Document):
    digest: str


class _Page(SearchReport):
    next_cursor: str | None = None


class _Membership(Document):
    namespace: str
    role: str


class _WhoAmI(Document):
    user: str
    admin: bool = False
    namespaces: list[_Membership] = Field(default=[])


class _Rules(Document):
    signed_by: list[str]


class _Namespace(Document):
    policy: _Rules


class ServerRemote:
    """The deltareg server below `http.base`; `url` is what the user calls it. Nothing is asked of it yet."""

    def __init__(self, url: str, http: HttpClient) -> None:
        self.url = url
        self._http = http
        self._bytes = OciClient(http, keeps_all=True)

    def capabilities(self) -> Capabilities:
        """What it can do. Whoever is not known to it may read at most."""
        answer = self._http.ask("GET", "api/v1/whoami", accept=(401,))
        writable = answer.status == 200 and _may_publish(_parsed(_WhoAmI, answer))
        return Capabilities(writable=writable, resumable=True, conditional_put=True, search=True)

    # --- blobs ---

    def missing(self, repository: str, digests: Iterable[Digest]) -> set[Digest]:
        """Those of `digests` that are not there. The others are safe from collection for the server's grace period."""
        wanted = sorted({parse_digest(digest) for digest in digests})
        found: set[Digest] = set()
        for start in range(0, len(wanted), _BATCH):
            body = json.dumps({"digests": wanted[start : start + _BATCH]}).encode()
            answer = self._ask("POST", f"{_delta(repository)}/missing", body=body, accept=(404,), repeatable=True)
            if answer.status == 404:
                return set(wanted)
            found |= {parse_digest(digest) for digest in _parsed(_Missing, answer).missing}
        return found

    def put_blob(self, repository: str, descriptor: Descriptor, source: Path, progress: Progress) -> int:
        """Send a blob from a file, going on where an earlier try was cut off."""
        return self._bytes.put_blob(repository, descriptor, source, progress)

    def get_blob(self, repository: str, descriptor: Descriptor, offset: int) -> Iterator[bytes]:
        """The bytes of a blob from `offset` on."""
        return self._bytes.get_blob(repository, descriptor, offset)

    # --- manifests ---

    def put_manifest(self, reference: Reference, manifest: bytes, *, if_absent: bool = True) -> Digest:
        """Publish a manifest under a version: of several who do so at once, one wins."""
        if not if_absent:
            raise NotAllowed(f"{self.url} keeps versions as they are", hint="publish under a new version number")
        parse_manifest(manifest, what=f"the manifest of {reference}")
        path = _version(reference, "to publish, write namespace/name:1.2.3")
        answer = self._ask("PUT", path, body=manifest, media_type=MANIFEST_TYPE)
        return parse_digest(_parsed(_Found, answer).digest)

    def get_manifest(self, repository: str, digest: Digest) -> bytes:
        """The bytes of a manifest."""
        data = self._bytes.manifest(repository, parse_digest(digest))
        if data is None:
            raise NotFound(f"{digest} is not in {repository} at {self.url}", hint=f"deltareg list --remote {self.url}")
        return data

    def put_referrer(self, repository: str, manifest: bytes) -> Digest:
        """Store the manifest of a referrer."""
        return self._bytes.put_referrer(repository, manifest)

    def referrers(self, repository: str, digest: Digest, artifact_type: str | None = None) -> builtins.list[Descriptor]:
        """The referrers of a manifest."""
        return self._bytes.referrers(repository, digest, artifact_type)

    # --- names ---

    def resolve(self, reference: Reference) -> Digest:
        """The digest that a name means."""
        asked = {"digest": reference.digest} if reference.digest is not None else {"tag": reference.tag or LATEST}
        answer = self._ask("GET", f"{_delta(reference.repository)}/resolve?{urlencode(asked)}")
        return parse_digest(_parsed(_Found, answer).digest)

    def list(self, repository: str | None = None) -> builtins.list[RemoteEntry]:
        """The names of one repository, or all that this user may see."""
        if repository is None:
            answer = self._ask("GET", "api/v1/index.ndjson", limit=_INDEX_LIMIT)
            lines = answer.body.splitlines()
            found = (parse(_Line, line, what=shown(answer.url)) for line in lines if line)
            return sorted(line.entry(line.manifest_size) for line in found)
        answer = self._ask("GET", _delta(repository), accept=(404,), limit=_LIST_LIMIT)
        if answer.status == 404:
            return []
        entries = sorted(entry.entry(entry.size) for entry in _parsed(_Entries, answer).entries)
        strange = [str(entry.reference) for entry in entries if entry.reference.repository != repository]
        if strange:
            # Another delta may be bound to another remote: this one has nothing to say of it.
            raise BadManifest(f"{shown(answer.url)} tells of {strange[0]}, which was not asked for")
        return entries

    def search(self, query: Query) -> SearchReport:
        """The published versions that `query` asks for, best fit first, then newest first."""
        target, tokenizer = query.target, None if query.target is None else query.target.tokenizer
        asked: dict[str, Any] = {
            "text": query.text,
            "fingerprint": None if target is None else target.digest,
            "space": None if target is None else target.space,
            "tokenizerCore": None if tokenizer is None else tokenizer.core,
            "tokenizerAdded": None if tokenizer is None else tokenizer.added,
            "licence": query.licence,
            "namespace": query.namespace,
            "modelType": query.model_type,
            "yanked": "true" if query.yanked else None,
        }
        page = first = self._found(asked, query.limit)
        results, seconds = first.results[: query.limit], first.seconds
        # A page without results would never lead to an end.
        while page.next_cursor is not None and page.results and len(results) < query.limit:
            left = query.limit - len(results)
            page = self._found({**asked, "cursor": page.next_cursor}, left)
            results += page.results[:left]
            seconds += page.seconds
        told = first.model_dump(include=set(SearchReport.model_fields) - {"results", "seconds"})
        return SearchReport(**told, results=results, seconds=seconds)

    def signers(self, namespace: str) -> builtins.list[str]:
        """The public keys, PEM, one of which has to have signed what is in a namespace."""
        answer = self._ask("GET", f"api/v1/namespaces/{quote(namespace, safe='')}", accept=(404,))
        return [] if answer.status == 404 else _parsed(_Namespace, answer).policy.signed_by

    def yank(self, reference: Reference, reason: str) -> None:
        """Yank a version."""
        self._mark(reference, "yank", parse_reason(reason))

    def unyank(self, reference: Reference) -> None:
        """Take back that a version was yanked."""
        self._mark(reference, "yank", None)

    def deprecate(self, reference: Reference, reason: str) -> None:
        """Advise against a version."""
        self._mark(reference, "deprecation", parse_reason(reason))

    def undeprecate(self, reference: Reference) -> None:
        """Take back that a version was advised against."""
        self._mark(reference, "deprecation", None)

    def set_channel(self, repository: str, channel: str, digest: Digest, expected: Digest | None) -> None:
        """Let a channel name a published version, if it still points to `expected`."""
        body = json.dumps({"digest": parse_digest(digest), "expected": expected}).encode()
        self._ask("PUT", _channel(repository, channel), body=body)

    def remove_channel(self, repository: str, channel: str) -> None:
        """Drop a channel."""
        self._ask("DELETE", _channel(repository, channel))

    # --- inside ---

    def _found(self, asked: Mapping[str, Any], most: int) -> _Page:
        given = {key: value for key, value in asked.items() if value is not None}
        query = urlencode({**given, "limit": min(most, _MOST_RESULTS)})
        return _parsed(_Page, self._ask("GET", f"api/v1/search?{query}", limit=_LIST_LIMIT))

    def _mark(self, reference: Reference, mark: str, reason: str | None) -> None:
        path = f"{_version(reference, 'only versions are marked so: namespace/name:1.2.3')}/{mark}"
        if reason is None:
            self._ask("DELETE", path)
        else:
            self._ask("PUT", path, body=json.dumps({"reason": reason}).encode())

    def _ask(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        media_type: str = "application/json",
        accept: tuple[int, ...] = (),
        limit: int = MANIFEST_LIMIT,
        repeatable: bool | None = None,
    ) -> Answer:
        headers = {} if body is None else {"Content-Type": media_type}
        return self._http.ask(
            method, path, headers=headers, body=body, accept=accept, limit=limit, repeatable=repeatable
        )


def _may_publish(asking: _WhoAmI) -> bool:
    # Without any role one may still be allowed to make a namespace: that is told by trying.
    roles = {membership.role for membership in asking.namespaces}
    return asking.admin or not roles or any(role in _PUBLISHING for role in roles)


def _delta(repository: str) -> str:
    reference = parse_reference(repository)
    return f"api/v1/deltas/{reference.namespace}/{reference.name}"


def _version(reference: Reference, hint: str) -> str:
    if reference.version is None:
        raise BadName(f"{reference} does not name a version", hint=hint)
    return f"{_delta(reference.repository)}/versions/{quote(reference.version)}"


def _channel(repository: str, channel: str) -> str:
    reference = parse_reference(f"{repository}:{channel}")
    if reference.version is not None or channel == LATEST:
        raise BadName(f"{channel!r} is no channel", hint="a channel is a lower-case word other than latest")
    return f"{_delta(reference.repository)}/channels/{channel}"


def _parsed(kind: type[Answered], answer: Answer) -> Answered:
    return parse(kind, answer.body, what=shown(answer.url))
