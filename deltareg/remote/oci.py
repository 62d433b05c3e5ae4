"""A client of the OCI distribution protocol: blobs, manifests, tags and referrers of one registry."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import quote, urljoin

from pydantic import Field

from deltareg.digest import Digest, parse_digest, parse_json, sha256
from deltareg.errors import BadManifest, BadName, NotFound, RemoteUnavailable
from deltareg.manifest import INDEX_TYPE, MANIFEST_TYPE, Descriptor, Document, encode, parse
from deltareg.progress import Progress
from deltareg.remote.answers import Answer
from deltareg.remote.bodies import Download
from deltareg.remote.http import HttpClient
from deltareg.remote.network import origin_of, shown
from deltareg.remote.uploads import Target, Uploader, UploadMemory, default_memory
from deltareg.store import MANIFEST_LIMIT

__all__ = ["EMPTY", "AnyManifest", "OciClient", "in_parallel"]

EMPTY = Descriptor(media_type="application/vnd.oci.empty.v1+json", digest=sha256(b"{}"), size=2)
"""What OCI has for a config or a layer where there is nothing to say; its bytes are `{}`."""

_ACCEPT = f"{MANIFEST_TYPE}, {INDEX_TYPE}"
_THREADS = 8
_PAGE = 1000
_PAGES = 1000
_LIST_LIMIT = 32 << 20
_MANY = 1_000_000
_MANY_REFERRERS = 4000

Item = TypeVar("Item")
Result = TypeVar("Result")


class AnyManifest(Document):
    """A manifest of any kind, as far as names and referrers need it."""

    schema_version: int = 2
    media_type: str = MANIFEST_TYPE
    artifact_type: str | None = None
    config: Descriptor | None = None
    layers: list[Descriptor] = Field(default=[])
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class _Referrers(Document):
    """An index of manifests that name one subject."""

    schema_version: int = 2
    media_type: str = INDEX_TYPE
    manifests: list[Descriptor] = Field(default=[])


class OciClient:
    """A registry below `http.base`; `prefix` goes before each repository's name there.

    `keeps_all`: it is known to keep what came of an upload whose connection was cut.

    Its methods may be called from any thread, and raise as HttpClient does. What they return is not verified, but for
    uploads, which the registry verifies, too.
    """

    def __init__(
        self, http: HttpClient, *, prefix: str = "", memory: UploadMemory | None = None, keeps_all: bool = False
    ) -> None:
        self.http = http
        self._prefix = prefix.strip("/")
        self._memory = memory or default_memory()
        self._keeps_all = keeps_all
        self._lock = threading.Lock()
        self._places: dict[str, str] = {}

    def ping(self) -> None:
        """Ask whether there is a registry that lets this user in. Raises NotAllowed, NotFound, RemoteUnavailable."""
        self.http.ask("GET", "v2/")

    def name(self, repository: str) -> str:
        """What the registry calls a repository."""
        return f"{self._prefix}/{repository}" if self._prefix else repository

    # --- blobs ---

    def missing(self, repository: str, digests: Iterable[Digest]) -> set[Digest]:
        """Those of `digests` that are not in a repository."""
        wanted = sorted({parse_digest(digest) for digest in digests})
        found = in_parallel(lambda digest: self.blob_size(repository, digest), wanted)
        return {digest for digest, size in zip(wanted, found, strict=True) if size is None}

    def blob_size(self, repository: str, digest: Digest) -> int | None:
        """The size of a blob; None where there is none, -1 where the registry does not tell."""
        size = self._target(repository, "pull").size(parse_digest(digest))
        if size is not None:
            self._remember(digest, repository)
        return size

    def get_blob(self, repository: str, blob: Descriptor, offset: int = 0) -> Iterator[bytes]:
        """The bytes of a blob from `offset` on. Raises NotFound, DigestMismatch for another size."""
        digest = parse_digest(blob.digest)
        url = f"v2/{self.name(repository)}/blobs/{digest}"
        try:
            yield from self.http.download(Download(url, blob.size, digest, self._scope(repository, "pull")), offset)
        except NotFound as error:
            raise NotFound(
                f"{digest} is not in {repository} at {self.http.login}", cause=error.cause, hint="run this again"
            ) from None

    def put_blob(self, repository: str, blob: Descriptor, source: Path, progress: Progress) -> int:
        """Send a blob from a file, unless another repository that is known to have it can lend it; the bytes sent.

        Goes on where an earlier try was cut off. Raises DigestMismatch, and nothing is visible then.
        """
        digest = parse_digest(blob.digest)
        lender = self._lender(digest, repository)
        target = self._target(repository, "pull,push", also=lender)
        sent = Uploader(target, blob, source, progress, self._memory).run(lender and self.name(lender))
        self._keeps_all = target.keeps_all
        self._remember(digest, repository)
        return sent

    def put_bytes(self, repository: str, data: bytes) -> Digest:
        """Store a small blob, unless it is there."""
        digest = sha256(data)
        if self.blob_size(repository, digest) is None:
            target = self._target(repository, "pull,push")
            location = target.begin()
            if location is not None:
                target.finish(location, digest, data)
        return digest

    # --- manifests ---

    def manifest(self, repository: str, reference: str) -> bytes | None:
        """The bytes of a manifest by its tag or digest; None where there is none. Raises BadManifest for too many."""
        answer = self._ask_manifest("GET", repository, reference)
        return None if answer.status == 404 else answer.body

    def digest(self, repository: str, reference: str) -> Digest | None:
        """The digest of a manifest by its tag or digest; None where there is none."""
        answer = self._ask_manifest("HEAD", repository, reference)
        if answer.status == 404:
            return None
        try:
            return parse_digest(answer.headers.get("docker-content-digest", ""))
        except BadName:
            # Registries need not say it, and some take no HEAD.
            data = self.manifest(repository, reference)
            return None if data is None else sha256(data)

    def put_manifest(self, repository: str, reference: str, manifest: bytes, media_type: str = MANIFEST_TYPE) -> Answer:
        """Store a manifest under a tag or its digest. Raises NotFound where the registry misses a blob of it."""
        return self.http.ask(
            "PUT",
            f"v2/{self.name(repository)}/manifests/{quote(reference, safe=':')}",
            headers={"Content-Type": media_type},
            body=manifest,
            scope=self._scope(repository, "pull,push"),
        )

    def delete_manifest(self, repository: str, digest: Digest) -> bool:
        """Drop a manifest and every tag that names it; False where the registry does not do such things."""
        answer = self.http.ask(
            "DELETE",
            f"v2/{self.name(repository)}/manifests/{digest}",
            accept=(400, 401, 403, 404, 405, 501),
            scope=self._scope(repository, "pull,push,delete"),
        )
        return answer.status < 300

    # --- names ---

    def tags(self, repository: str) -> list[str]:
        """The tags of a repository; none for an unknown one."""
        path = f"v2/{self.name(repository)}/tags/list"
        return self._listed(path, "tags", self._scope(repository, "pull"))

    def repositories(self) -> list[str]:
        """The repositories below the prefix, as far as this user sees them. Not every registry tells."""
        start = f"{self._prefix}/" if self._prefix else ""
        names = self._listed("v2/_catalog", "repositories", "registry:catalog:*", absent=None)
        return sorted(name.removeprefix(start) for name in names if name.startswith(start))

    # --- referrers ---

    def referrers(self, repository: str, digest: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        """The manifests whose subject has a digest."""
        query = f"?artifactType={quote(artifact_type, safe='')}" if artifact_type else ""
        path = f"v2/{self.name(repository)}/referrers/{parse_digest(digest)}{query}"
        scope = self._scope(repository, "pull")
        found: list[Descriptor] | None = None
        for answer in self._pages(path, scope, accept=(404, 405, 501)):
            if answer.status >= 300:
                break
            if found is not None and len(found) > _MANY_REFERRERS:
                break  # whoever may write there could fill the memory of all who read
            found = [*(found or []), *parse(_Referrers, answer.body, what=shown(answer.url)).manifests]
        if found is None:
            found = self._tagged_referrers(repository, digest)
        return [one for one in found if artifact_type is None or one.artifact_type == artifact_type]

    def put_referrer(self, repository: str, manifest: bytes) -> Digest:
        """Store a manifest with a subject, whose blobs are there. Raises BadManifest where it has none."""
        document = parse(AnyManifest, manifest, what="the manifest of a referrer")
        if document.subject is None:
            raise BadManifest("the manifest of a referrer has no subject")
        digest = sha256(manifest)
        answer = self.put_manifest(repository, digest, manifest, document.media_type)
        if "oci-subject" not in answer.headers:
            self._tag_referrer(repository, parse_digest(document.subject.digest), document, digest, len(manifest))
        return digest

    def _tagged_referrers(self, repository: str, digest: Digest) -> list[Descriptor]:
        """The scheme of OCI 1.1 for registries without the API: an index under a tag that is made of the digest."""
        data = self.manifest(repository, digest.replace(":", "-"))
        return [] if data is None else parse(_Referrers, data, what=f"the referrers of {digest}").manifests

    def _tag_referrer(self, repository: str, subject: Digest, document: AnyManifest, digest: Digest, size: int) -> None:
        config_type = None if document.config is None else document.config.media_type
        descriptor = Descriptor(
            media_type=document.media_type,
            digest=digest,
            size=size,
            artifact_type=document.artifact_type or config_type,
            annotations=document.annotations,
        )
        others = [one for one in self._tagged_referrers(repository, subject) if one.digest != digest]
        index = encode(_Referrers(manifests=[*others, descriptor]))
        self.put_manifest(repository, subject.replace(":", "-"), index, INDEX_TYPE)

    # --- inside ---

    def _ask_manifest(self, method: str, repository: str, reference: str) -> Answer:
        return self.http.ask(
            method,
            f"v2/{self.name(repository)}/manifests/{quote(reference, safe=':')}",
            headers={"Accept": _ACCEPT},
            accept=(404,) if method == "GET" else (404, 405),
            limit=MANIFEST_LIMIT,
            scope=self._scope(repository, "pull"),
        )

    def _listed(self, path: str, key: str, scope: str, *, absent: int | None = 404) -> list[str]:
        found: list[str] = []
        accept = () if absent is None else (absent,)
        for answer in self._pages(f"{path}?n={_PAGE}", scope, accept=accept):
            if answer.status == absent:
                return []
            document = parse_json(answer.body, what=shown(answer.url))
            names = cast("dict[str, Any]", document).get(key) if isinstance(document, dict) else None
            listed: Sequence[Any] = cast("list[Any]", names) if isinstance(names, list) else []
            found += [name for name in listed if isinstance(name, str)]
            if len(found) > _MANY:
                raise BadManifest(f"{shown(answer.url)} lists more than {_MANY} names")
        return list(dict.fromkeys(found))

    def _pages(self, path: str, scope: str, *, accept: tuple[int, ...] = ()) -> Iterator[Answer]:
        """Answers page by page, as `Link` leads on."""
        url: str | None = self.http.url(path)
        seen: set[str] = set()
        while url is not None and url not in seen and len(seen) < _PAGES:
            seen.add(url)
            answer = self.http.ask("GET", url, accept=accept, limit=_LIST_LIMIT, scope=scope)
            yield answer
            url = self._next(answer)

    def _next(self, answer: Answer) -> str | None:
        link, _, rest = answer.headers.get("link", "").partition(">")
        if not link.startswith("<") or "next" not in rest:
            return None
        url = urljoin(answer.url, link[1:])
        if origin_of(url) != self.http.origin:
            raise RemoteUnavailable(
                f"{self.http.login} says that its list goes on elsewhere", cause=shown(url), hint="check the URL"
            )
        return url

    def _target(self, repository: str, rights: str, also: str | None = None) -> Target:
        scope = self._scope(repository, rights) + (f" {self._scope(also, 'pull')}" if also else "")
        return Target(self.http, self.name(repository), scope, keeps_all=self._keeps_all)

    def _scope(self, repository: str, rights: str) -> str:
        return f"repository:{self.name(repository)}:{rights}"

    def _remember(self, digest: str, repository: str) -> None:
        with self._lock:
            self._places[digest] = repository

    def _lender(self, digest: Digest, repository: str) -> str | None:
        """Another repository that was seen to have a blob."""
        with self._lock:
            found = self._places.get(digest)
        return None if found == repository else found


def in_parallel(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """What `work` returns for each item, in their order; the first error is raised once all have ended."""
    todo = list(items)
    if len(todo) < 2:
        return [work(item) for item in todo]
    with ThreadPoolExecutor(min(_THREADS, len(todo)), thread_name_prefix="registry") as pool:
        return list(pool.map(work, todo))
