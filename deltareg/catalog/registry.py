"""The embedded registry: a store and its catalog in one home directory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import platformdirs

from deltareg.artifact import Artifact
from deltareg.catalog.catalog import Catalog
from deltareg.catalog.rows import CatalogRow
from deltareg.catalog.search import Query, SearchReport
from deltareg.digest import Digest
from deltareg.errors import InvalidArgument, NotFound
from deltareg.manifest import Fingerprint
from deltareg.names import Reference, parse_reference
from deltareg.paths import expand_home
from deltareg.progress import Progress
from deltareg.signing import PINS_NAME, Pins, Policies, ReferrerSource, SignatureRow, StoreReferrers, Verified
from deltareg.store import FsckReport, GcReport, Store, version_among

__all__ = ["Registry", "default_home"]


class Registry:
    """The deltas on this machine.

    `home` is `DELTAREG_HOME`, or else the platform's data directory, unless it is given. Without `create` it must
    exist. Raises NotFound, InvalidArgument for a file, NetworkFilesystem, NotAllowed, UnsupportedFormat,
    UsageError.
    """

    home: Path
    store: Store
    catalog: Catalog
    policies: Policies
    """Whose deltas have to be signed before they are pulled, locked, built or applied, as the settings say."""
    pins: Pins
    """The same, as servers have told it. What either asks for has to be there."""

    def __init__(
        self, home: Path | str | None = None, *, create: bool = True, policies: Policies | None = None
    ) -> None:
        self.policies = policies or Policies()
        self.home = expand_home(default_home() if home is None else home).absolute()
        self.pins = Pins(self.home / PINS_NAME)
        if os.path.exists(self.home) and not os.path.isdir(self.home):
            raise InvalidArgument(
                f"{self.home} is no directory", hint="let DELTAREG_HOME name the directory of a registry"
            )
        self.catalog = Catalog(self.home / "catalog.db")
        self.store = Store(self.home / "registry", create=create)

    def resolve(self, reference: Reference | str) -> Digest:
        """The digest that a name means. Raises NotFound, BadName."""
        return self.store.resolve(_parsed(reference))

    def version_of(self, reference: Reference | str) -> Reference:
        """The version that a channel, `latest` or a digest means; the digest itself where no version has it."""
        wanted = _parsed(reference)
        digest = self.store.resolve(wanted)
        version = version_among(self.store.siblings(wanted), wanted, digest)
        return Reference(wanted.namespace, wanted.name, digest=digest) if version is None else version

    def yanked(self, reference: Reference | str) -> str | None:
        """Why the version that a name means was yanked, "" where nobody said why; None where it was not."""
        version = self.version_of(reference)
        return None if version.version is None else self.store.entry(version).yanked

    def deprecated(self, reference: Reference | str) -> str | None:
        """Why the version that a name means was deprecated, as `yanked` tells it."""
        version = self.version_of(reference)
        return None if version.version is None else self.store.entry(version).deprecated

    def artifact(self, reference: Reference | str) -> Artifact:
        """The delta of that name. Raises NotFound, BadName, DigestMismatch, BadManifest."""
        return Artifact.open(self.store, self.resolve(reference))

    def asks_who_signed(self, repository: str) -> bool:
        """Whether any policy is for `namespace/name`."""
        return self.policies.of(repository) is not None or bool(self.pins.of(repository.partition("/")[0]))

    def check_policies(self, reference: Reference, digest: Digest, sources: Iterable[ReferrerSource]) -> list[Verified]:
        """The signatures that let a delta be used, wherever it is; `sources` is gone through once for each policy.

        Those of the settings and those that servers told all have to be met. Raises SignatureMissing,
        SignatureUntrusted, SignatureInvalid, SignersChanged, RemoteUnavailable.
        """
        own = self.policies.check(reference, digest, sources)
        return own + self.pins.check(reference, digest, sources)

    def check_signed(self, reference: Reference | str) -> list[SignatureRow]:
        """The signatures that let a delta of that name be used, where a policy asks for some.

        Raises NotFound and what `check_policies` raises.
        """
        wanted = _parsed(reference)
        if not self.asks_who_signed(wanted.repository):
            return []
        # Who names a digest means these bytes, whichever of their versions was signed.
        name = wanted if wanted.digest is not None else self.version_of(wanted)
        found = self.check_policies(name, self.resolve(wanted), [StoreReferrers(self.store)])
        return [one.row for one in found]

    def publish(self, reference: Reference | str, manifest: bytes) -> Digest:
        """Name a manifest whose blobs are in the store: see `Store.publish`."""
        return self.store.publish(_parsed(reference), manifest)

    def list(self, repository: str | None = None) -> list[CatalogRow]:
        """The published versions, of one repository or of all. Raises BadName; NotFound for an unknown repository."""
        if repository is None:
            return self.catalog.rows(self.store)
        wanted = parse_reference(repository).repository
        rows = self.catalog.rows(self.store, wanted)
        if not rows:
            raise NotFound(f"{wanted} is not in {self.home}", hint="deltareg list", reference=wanted)
        return rows

    def search(
        self,
        text: str | None = None,
        *,
        target: Fingerprint | None = None,
        licence: str | None = None,
        namespace: str | None = None,
        model_type: str | None = None,
        limit: int = 20,
        yanked: bool = False,
    ) -> SearchReport:
        """The published deltas with every word of `text` that fit `target`, best first, then newest first.

        Without those that are yanked, unless `yanked` is set. A first look, from digests: see `Fit`. Raises
        InvalidArgument for a limit below 1 or more than 32 words.
        """
        query = Query(text, target, licence, namespace, model_type, limit, yanked)
        return self.catalog.search(self.store, query)

    def reindex(self) -> int:
        """Build the catalog anew; return the number of names."""
        return self.catalog.reindex(self.store)

    def gc(self, grace_seconds: float = 3600, *, dry_run: bool = False) -> GcReport:
        """Remove what no name leads to: see `Store.gc`."""
        return self.store.gc(grace_seconds, dry_run=dry_run)

    def fsck(self, progress: Progress | None = None, *, drop_damaged: bool = False) -> FsckReport:
        """Read everything and report each fault: see `Store.fsck`."""
        return self.store.fsck(progress, drop_damaged=drop_damaged)


def default_home() -> Path:
    """`DELTAREG_HOME`, or else the platform's data directory for deltareg."""
    home = os.environ.get("DELTAREG_HOME")
    if home:
        return Path(home)
    return platformdirs.user_data_path("deltareg")


def _parsed(reference: Reference | str) -> Reference:
    return reference if isinstance(reference, Reference) else parse_reference(reference)
