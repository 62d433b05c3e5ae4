"""The manifests of a repository, what they need, and what refers to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, select

from deltareg.digest import Digest
from deltareg.errors import BadManifest, NotFound
from deltareg.manifest import Descriptor
from deltareg_registry.database import now
from deltareg_registry.database.tables import manifest_blobs, manifests, tags, versions
from deltareg_registry.records.artifacts import Artifact
from deltareg_registry.records.blobs import sizes_of
from deltareg_registry.records.namespaces import insert_all_if_absent, insert_if_absent

__all__ = [
    "Kept",
    "check_parts",
    "drop_manifest",
    "find_manifest",
    "keep_manifest",
    "missing_parts",
    "needs_blob",
    "referrers_of",
]

_BATCH = 500
_DEPTH = 8
_NESTED = 10_000
_REFERRERS_SIZE = 4 << 20


@dataclass(frozen=True)
class Kept:
    """A manifest as the registry has it."""

    digest: Digest
    media_type: str
    content: bytes


def find_manifest(connection: Connection, repository: int, digest: Digest) -> Kept:
    """A manifest of a repository. Raises NotFound."""
    where = (manifests.c.repository == repository, manifests.c.digest == digest)
    columns = (manifests.c.media_type, manifests.c.content)
    row = connection.execute(select(*columns).where(*where)).one_or_none()
    if row is None:
        raise NotFound(f"the repository has no manifest {digest}")
    return Kept(digest, row.media_type, bytes(row.content))


def keep_manifest(connection: Connection, repository: int, artifact: Artifact) -> bool:
    """Put a manifest into a repository, which has all that it needs; False where it was there before."""
    time = now()
    row: dict[str, object] = {
        "repository": repository,
        "digest": artifact.digest,
        "media_type": artifact.media_type,
        "artifact_type": artifact.artifact_type,
        "size": len(artifact.data),
        "subject": artifact.subject,
        "annotations": artifact.annotations,
        "content": artifact.data,
        "created": time,
        "touched": time,
    }
    added = insert_if_absent(connection, manifests, row)
    where = (manifests.c.repository == repository, manifests.c.digest == artifact.digest)
    connection.execute(manifests.update().where(*where).values(touched=time))
    parts = [*artifact.blobs, *artifact.manifests]
    rows: list[dict[str, object]] = [
        {"repository": repository, "manifest": artifact.digest, "digest": part.digest} for part in parts
    ]
    insert_all_if_absent(connection, manifest_blobs, rows)
    return added


def missing_parts(connection: Connection, repository: int, artifact: Artifact) -> list[str]:
    """What a manifest needs and its repository lacks; the other blobs stay until the transaction ends."""
    blobs = sizes_of(connection, repository, (Digest(part.digest) for part in artifact.blobs), hold=True)
    nested = _sizes(connection, repository, (Digest(part.digest) for part in artifact.manifests))
    absent = [part.digest for part in artifact.blobs if part.digest not in blobs and not _is_kept_elsewhere(part)]
    return absent + [part.digest for part in artifact.manifests if part.digest not in nested]


def _is_kept_elsewhere(part: Descriptor) -> bool:
    """Whether a layer may lie at its maker's alone, as the specification of images once had it."""
    return ".nondistributable." in part.media_type or ".rootfs.foreign." in part.media_type


def check_parts(connection: Connection, repository: int, artifact: Artifact) -> None:
    """Raise BadManifest where what a manifest needs has another size than it says, or lies too deep within it."""
    sizes = {
        **sizes_of(connection, repository, (Digest(part.digest) for part in artifact.blobs)),
        **_sizes(connection, repository, (Digest(part.digest) for part in artifact.manifests)),
    }
    for part in (*artifact.blobs, *artifact.manifests):
        found = sizes.get(Digest(part.digest), part.size)
        if found != part.size:
            raise BadManifest(f"{part.digest} has {found} bytes, not the {part.size} that the manifest says")
    _check_depth(connection, repository, artifact.manifests)


def _check_depth(connection: Connection, repository: int, parts: Iterable[Descriptor]) -> None:
    seen: set[str] = set()
    level = {part.digest for part in parts}
    for _ in range(_DEPTH):
        if not level:
            return
        seen |= level
        if len(seen) > _NESTED:
            raise BadManifest(f"the index holds more than {_NESTED} manifests, with those within them")
        level = _manifests_in(connection, repository, level) - seen
    if level:
        raise BadManifest(f"indexes are nested deeper than {_DEPTH}")


def _manifests_in(connection: Connection, repository: int, holding: Iterable[str]) -> set[str]:
    found: set[str] = set()
    digests = sorted(holding)
    within = (manifests.c.repository == manifest_blobs.c.repository) & (manifests.c.digest == manifest_blobs.c.digest)
    for start in range(0, len(digests), _BATCH):
        batch = digests[start : start + _BATCH]
        where = (manifest_blobs.c.repository == repository, manifest_blobs.c.manifest.in_(batch))
        wanted = select(manifest_blobs.c.digest).join(manifests, within).where(*where).limit(_NESTED + 1)
        found.update(connection.execute(wanted).scalars())
    return found


def needs_blob(connection: Connection, repository: int, digest: Digest) -> str | None:
    """A manifest of a repository that needs a blob; None where none does."""
    where = (manifest_blobs.c.repository == repository, manifest_blobs.c.digest == digest)
    return connection.execute(select(manifest_blobs.c.manifest).where(*where).limit(1)).scalar_one_or_none()


def drop_manifest(connection: Connection, repository: int, digest: Digest) -> None:
    """Take a manifest out of a repository, with the tags that name it. Raises NotFound.

    No version may have it: `records.tags` sees to that.
    """
    where = (manifests.c.repository == repository, manifests.c.digest == digest)
    named = (versions.c.repository == repository, versions.c.digest == digest)
    assert connection.execute(select(versions.c.id).where(*named).limit(1)).first() is None
    if connection.execute(delete(manifests).where(*where)).rowcount == 0:
        raise NotFound(f"the repository has no manifest {digest}")
    connection.execute(
        delete(manifest_blobs).where(manifest_blobs.c.repository == repository, manifest_blobs.c.manifest == digest)
    )
    connection.execute(delete(tags).where(tags.c.repository == repository, tags.c.digest == digest))


def referrers_of(
    connection: Connection, repository: int, subject: Digest, artifact_type: str | None, after: str, limit: int
) -> list[Mapping[str, object]]:
    """Descriptors of the manifests whose subject is a digest, by their own digest, from the one after `after` on.

    At most `limit`, and of some megabytes of manifests: their annotations may be as long as they are.
    """
    columns = (
        manifests.c.media_type,
        manifests.c.size,
        manifests.c.digest,
        manifests.c.artifact_type,
        manifests.c.annotations,
    )
    where = [manifests.c.repository == repository, manifests.c.subject == subject, manifests.c.digest > after]
    if artifact_type is not None:
        where.append(manifests.c.artifact_type == artifact_type)
    sizes = select(manifests.c.digest, manifests.c.size).where(*where).order_by(manifests.c.digest).limit(limit)
    chosen: list[str] = []
    total = 0
    for row in connection.execute(sizes):
        chosen.append(row.digest)
        total += row.size
        # One more than fits: whoever asks sees that there are more.
        if total > _REFERRERS_SIZE and len(chosen) > 1:
            break
    rows: list[Any] = []
    for start in range(0, len(chosen), _BATCH):
        batch = (manifests.c.repository == repository, manifests.c.digest.in_(chosen[start : start + _BATCH]))
        rows += connection.execute(select(*columns).where(*batch).order_by(manifests.c.digest))
    return [
        {
            "mediaType": row.media_type,
            "size": row.size,
            "digest": row.digest,
            **({} if row.artifact_type is None else {"artifactType": row.artifact_type}),
            **({"annotations": row.annotations} if row.annotations else {}),
        }
        for row in rows
    ]


def _sizes(connection: Connection, repository: int, digests: Iterable[Digest]) -> Mapping[Digest, int]:
    found: dict[Digest, int] = {}
    wanted = list(digests)
    for start in range(0, len(wanted), _BATCH):
        where = (manifests.c.repository == repository, manifests.c.digest.in_(wanted[start : start + _BATCH]))
        rows = connection.execute(select(manifests.c.digest, manifests.c.size).where(*where))
        found.update({Digest(row.digest): row.size for row in rows})
    return found
