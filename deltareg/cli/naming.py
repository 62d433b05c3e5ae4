"""What is said of names, as documents: `yank`, `deprecate`, their opposites and `channel`, here or at a remote."""

from __future__ import annotations

from deltareg.cli.reports import ChannelChange, ChannelList, ChannelRow, DeprecationReport, MarkedVersion, YankReport
from deltareg.cli.session import home_of, open_registry, reach
from deltareg.config import Settings
from deltareg.digest import Digest
from deltareg.errors import BadName, NotFound
from deltareg.names import LATEST, Reference, parse_reason, parse_reference, version_key
from deltareg.remote import Remote
from deltareg.store import Entry, Store, channel_moved, latest_tag, version_among

__all__ = ["Place"]

_NOTHING = "none"


class Place:
    """Where names are changed. Raises NotFound where there is no local registry yet."""

    def __init__(self, settings: Settings, remote: str | None) -> None:
        self.names: Store | Remote = open_registry(settings).store if remote is None else reach(settings, remote)
        self.registry = str(home_of(settings)) if isinstance(self.names, Store) else self.names.url

    def mark(self, text: str, reason: str | None, *, dry_run: bool) -> YankReport:
        """Yank a version for a reason, or, without one, take that back. Raises NotFound, BadName, InvalidArgument."""
        reference = parse_reference(text)
        if reference.version is None:
            raise BadName(f"{reference} does not name a version", hint="only versions are yanked: namespace/name:1.2.3")
        reason = None if reason is None else parse_reason(reason)
        digest = self.names.resolve(reference)
        if dry_run:
            pass
        elif reason is None:
            self.names.unyank(reference)
        else:
            self.names.yank(reference, reason)
        return YankReport(
            reference=str(reference), digest=digest, registry=self.registry, yanked=reason, dry_run=dry_run
        )

    def deprecate(self, text: str, reason: str | None, *, dry_run: bool) -> DeprecationReport:
        """Deprecate a version, or all of a name, for a reason; without one take that back.

        Raises NotFound, BadName, InvalidArgument.
        """
        reference = parse_reference(text)
        if reference.digest is not None or (reference.tag is not None and reference.version is None):
            raise BadName(
                f"{reference} names neither a version nor all of them",
                hint=f"write {reference.repository}:1.2.3, or {reference.repository} for every version",
            )
        reason = None if reason is None else parse_reason(reason)
        versions = [entry for entry in self._entries(reference) if entry.reference.version is not None]
        wanted = [entry for entry in versions if reference.tag is None or entry.reference == reference]
        if not wanted:
            there = ", ".join(str(entry.reference.tag) for entry in versions)
            raise NotFound(
                f"{reference} is not in {self.registry}",
                cause=f"{reference.repository} has {there}" if there else None,
                hint="deltareg list",
                reference=str(reference),
            )
        wanted.sort(key=lambda entry: version_key(str(entry.reference.tag)))
        for entry in [] if dry_run else wanted:
            if reason is None:
                self.names.undeprecate(entry.reference)
            else:
                self.names.deprecate(entry.reference, reason)
        return DeprecationReport(
            reference=str(reference),
            registry=self.registry,
            versions=[MarkedVersion(reference=str(entry.reference), digest=entry.digest) for entry in wanted],
            deprecated=reason,
            dry_run=dry_run,
        )

    def set_channel(self, text: str, version: str, expected: str | None, *, dry_run: bool) -> ChannelChange:
        """Let a channel name a version, or the version of another channel.

        `expected` is the version that it names until now, or "none". Raises ChannelMoved where it names another one;
        NotFound, BadName.
        """
        reference = _channel(text)
        entries = self._entries(reference)
        before = next((entry.digest for entry in entries if entry.reference == reference), None)
        wanted = reference.with_tag(parse_reference(f"{reference.repository}:{version}").tag or LATEST)
        digest = self.names.resolve(wanted)
        if expected == _NOTHING:
            known = None
        elif expected is None:
            known = before
        else:
            known = self.names.resolve(parse_reference(f"{reference.repository}:{expected}"))
        if not dry_run:
            self.names.set_channel(reference.repository, str(reference.tag), digest, known)
        elif before not in (digest, known):
            raise channel_moved(reference, before, known)
        found = version_among(entries, wanted, digest)
        return self._change(reference, entries, found, digest, before, dry_run=dry_run)

    def remove_channel(self, text: str, *, dry_run: bool) -> ChannelChange:
        """Drop a channel. Raises NotFound, BadName."""
        reference = _channel(text)
        entries = self._entries(reference)
        before = self.names.resolve(reference)
        if not dry_run:
            self.names.remove_channel(reference.repository, str(reference.tag))
        return self._change(reference, entries, None, None, before, dry_run=dry_run)

    def channels(self, text: str) -> ChannelList:
        """The channels of a repository and what they name. Raises NotFound where the repository is not there."""
        reference = parse_reference(text)
        entries = self._entries(reference)
        if not entries:
            raise NotFound(
                f"{reference.repository} is not in {self.registry}",
                hint="deltareg list",
                reference=reference.repository,
            )
        channels = {
            str(entry.reference.tag): _version(entries, entry.digest, reference)
            for entry in entries
            if entry.reference.version is None
        }
        latest = latest_tag(entries)
        named = {LATEST: next((entry for entry in entries if entry.reference.tag == latest), None), **channels}
        return ChannelList(
            registry=self.registry,
            repository=reference.repository,
            channels=[
                ChannelRow(
                    channel=channel,
                    version=str(entry.reference.tag),
                    digest=entry.digest,
                    yanked=entry.yanked,
                    deprecated=entry.deprecated,
                    computed=channel == LATEST,
                )
                for channel, entry in sorted(named.items())
                if entry is not None
            ],
        )

    def _entries(self, reference: Reference) -> list[Entry]:
        if isinstance(self.names, Store):
            return self.names.siblings(reference)
        return self.names.list(reference.repository)

    def _change(
        self,
        reference: Reference,
        entries: list[Entry],
        version: Reference | None,
        digest: Digest | None,
        before: Digest | None,
        *,
        dry_run: bool,
    ) -> ChannelChange:
        earlier = None if before is None else _version(entries, before, reference)
        now = next((entry for entry in entries if entry.reference == version), None)
        return ChannelChange(
            reference=str(reference),
            registry=self.registry,
            version=None if version is None else version.tag,
            digest=digest,
            before=None if earlier is None else earlier.reference.tag,
            yanked=None if now is None else now.yanked,
            deprecated=None if now is None else now.deprecated,
            dry_run=dry_run,
        )


def _channel(text: str) -> Reference:
    reference = parse_reference(text)
    if reference.tag is None or reference.version is not None or reference.tag == LATEST:
        raise BadName(
            f"{text} is no channel that can be set",
            hint="write namespace/name:channel; a channel is a lower-case word other than latest",
        )
    return reference


def _version(entries: list[Entry], digest: Digest, reference: Reference) -> Entry | None:
    """The version that has a digest: the highest, where several have it."""
    found = version_among(entries, Reference(reference.namespace, reference.name), digest)
    return next((entry for entry in entries if entry.reference == found), None)
