"""Policies that servers tell: remembered at the first contact, from when on a server can make them stricter only.

A server says who has to sign what is in a namespace. That is believed once, and kept in the home, as `ssh` keeps the
keys of hosts: a server, or a thief of an owner's token, that tells of other keys later, or of none, changes nothing
before the user has accepted it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field

from deltareg.digest import Digest
from deltareg.editing import replace_text
from deltareg.errors import (
    BadConfig,
    BadManifest,
    InvalidArgument,
    NotFound,
    SignatureUntrusted,
    SignersChanged,
    translate_os_errors,
)
from deltareg.manifest import Document, parse
from deltareg.names import Reference
from deltareg.signing.keys import fingerprint_of, parse_public_key, pem_of
from deltareg.signing.policy import Verified, demand
from deltareg.signing.source import ReferrerSource
from deltareg.signing.trust import TrustedKey
from deltareg.store.lock import FileLock

__all__ = ["MOST_KEYS", "PINS_NAME", "Pin", "PinnedKey", "Pins", "told_keys", "unreadable"]

PINS_NAME = "signers.json"
"""The file, in the home of a local registry."""

MOST_KEYS = 100
"""Keys of one namespace that a server may tell of."""

_LIMIT = 16 << 20


class PinnedKey(Document):
    """A key whose signatures count."""

    fingerprint: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the PEM text")
    pem: str = Field(description="the public key, PEM")


class Pin(Document):
    """Who has to sign what is in a namespace, as a server told it."""

    namespace: str
    server: str = Field(description="its URL")
    since: str = Field(description="when it was told first, or accepted; RFC 3339")
    keys: list[PinnedKey] = Field(min_length=1, description="one of them has to have signed")

    @property
    def fingerprints(self) -> frozenset[str]:
        """Those of its keys."""
        return frozenset(key.fingerprint for key in self.keys)


class _File(Document):
    format_version: int = 1
    signers: list[Pin]


_Place = tuple[str, str]
"""Namespace and server."""


class Pins:
    """The policies of servers that a home remembers, all of which hold, wherever a delta comes from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path.with_suffix(".lock"))
        self._told: dict[_Place, frozenset[str]] = {}
        self._unkept: dict[_Place, Pin] = {}

    def all(self) -> list[Pin]:
        """Every one, by namespace. Raises BadConfig for a file that cannot be read: nothing is used unsigned then."""
        return [pin for _, pin in sorted({**self._read(), **self._unkept}.items())]

    def of(self, namespace: str) -> list[Pin]:
        """Those for a namespace. Raises BadConfig."""
        return [pin for pin in self.all() if pin.namespace == namespace]

    def learn(self, server: str, namespace: str, told: Sequence[PinnedKey], *, keep: bool = True) -> None:
        """Take in what a server tells of a namespace: all of it the first time, and later what it names no longer.

        Without `keep` it holds in this process and is not written. Raises BadConfig, DiskFull, NotAllowed.
        """
        place = (namespace, server)
        self._told[place] = frozenset(key.fingerprint for key in told)
        pin = self._learnt(self._unkept.get(place) or self._read().get(place), place, told)
        if pin is None:
            return
        if not keep:
            self._unkept[place] = pin
            return
        with self._changing():
            # Read again: another process may have been quicker.
            pins = self._read()
            pin = self._learnt(pins.get(place), place, told)
            if pin is not None:
                self._write({**pins, place: pin})

    def accept(self, server: str, namespace: str, told: Sequence[PinnedKey], *, dry_run: bool = False) -> Pin:
        """Remember what a server tells now instead of what it told before. Raises NotFound where it tells nothing."""
        if not told:
            raise NotFound(
                f"{server} names nobody who has to sign what is in {namespace}",
                hint=f"deltareg signers forget {namespace}, if what it told before is to hold no longer",
            )
        place = (namespace, server)
        pin = Pin(namespace=namespace, server=server, since=_now(), keys=list(told))
        if not dry_run:
            with self._changing():
                self._write({**self._read(), place: pin})
        return pin

    def forget(self, namespace: str, server: str | None = None, *, dry_run: bool = False) -> list[Pin]:
        """Forget what was told of a namespace, by one server or by all; return it. Raises NotFound."""
        gone = [pin for pin in self.of(namespace) if server in (None, pin.server)]
        if not gone:
            raise NotFound(
                f"nothing is remembered of who signs {namespace}" + (f" at {server}" if server else ""),
                hint="deltareg signers list",
            )
        if not dry_run:
            with self._changing():
                places = {(pin.namespace, pin.server) for pin in gone}
                self._write({place: pin for place, pin in self._read().items() if place not in places})
        return gone

    def check(self, reference: Reference, digest: Digest, sources: Iterable[ReferrerSource]) -> list[Verified]:
        """Refuse a delta that one of them forbids; `sources` is gone through once for each.

        A key counts while it is remembered and, where its server was asked, still told. Raises SignersChanged where a
        key would have to count that is not remembered; SignatureMissing, SignatureUntrusted, SignatureInvalid.
        """
        return [found for pin in self.of(reference.namespace) for found in self._check(pin, reference, digest, sources)]

    def _check(
        self, pin: Pin, reference: Reference, digest: Digest, sources: Iterable[ReferrerSource]
    ) -> list[Verified]:
        told = self._told.get((pin.namespace, pin.server))
        stopped = told is not None and not told
        counting = [key for key in pin.keys if not told or key.fingerprint in told]
        added = (told or frozenset()) - pin.fingerprints
        if not counting:
            raise _changed(pin, added, f"{reference} is not used: ")
        people = [_person(key) for key in counting]
        since = f"the policy for {pin.namespace} that {pin.server} told on {pin.since[:10]}"
        why = f"{since}, and tells no longer, asks for that" if stopped else f"{since} asks for that"
        hint = (
            f"ask its owners; if they dropped the policy on purpose: deltareg signers forget {pin.namespace}"
            if stopped
            else f"deltareg signers list shows whom it names; ask the owners of {pin.namespace} at {pin.server}"
        )
        try:
            return demand(people, why, reference, digest, sources, hint=hint)
        except SignatureUntrusted as error:
            if added:
                raise _changed(pin, added, f"{error.message}: ") from error
            raise

    def _learnt(self, before: Pin | None, place: _Place, told: Sequence[PinnedKey]) -> Pin | None:
        """What is to be remembered instead; None where nothing changes."""
        if before is None:
            namespace, server = place
            return Pin(namespace=namespace, server=server, since=_now(), keys=list(told)) if told else None
        names = {key.fingerprint for key in told}
        left = [key for key in before.keys if key.fingerprint in names]
        # A key that is told no longer was taken back, and does not come back unasked. That all of them are is no news
        # to act on: it is how a policy would be taken away.
        return before.model_copy(update={"keys": left}) if left and len(left) < len(before.keys) else None

    @contextmanager
    def _changing(self) -> Generator[None]:
        with translate_os_errors("make the home", self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock.exclusive():
            yield

    def _read(self) -> dict[_Place, Pin]:
        with translate_os_errors("read who signs", self.path):
            try:
                with self.path.open("rb") as file:
                    data = file.read(_LIMIT + 1)
            except FileNotFoundError:
                return {}
        try:
            pins = parse(_File, data, what=str(self.path)).signers
        except BadManifest as error:
            raise BadConfig(
                f"{self.path}, where it is remembered who signs, is damaged",
                cause=error.cause or error.message,
                hint=f"take it from a backup; or remove it: what servers tell is then believed once more: {self.path}",
                path=self.path,
            ) from error
        return {(pin.namespace, pin.server): pin for pin in pins}

    def _write(self, pins: Mapping[_Place, Pin]) -> None:
        file = _File(signers=[pin for _, pin in sorted(pins.items())])
        replace_text(self.path, file.model_dump_json(by_alias=True, indent=2) + "\n")


def told_keys(server: str, namespace: str, texts: Sequence[str]) -> list[PinnedKey]:
    """The keys that a server tells of, each once. Raises BadManifest where one of them is none, or there are too many.

    InvalidArgument where model-signing is not installed.
    """
    found: dict[str, PinnedKey] = {}
    try:
        if len(texts) > MOST_KEYS:
            raise InvalidArgument(f"it names {len(texts)} keys; at most {MOST_KEYS} are read")
        for text in texts:
            key = parse_public_key(text.encode(), "one of its keys")
            fingerprint = fingerprint_of(key)
            found[fingerprint] = PinnedKey(fingerprint=fingerprint, pem=pem_of(key).decode())
    except InvalidArgument as error:
        if error.hint is not None and "deltareg[sign]" in error.hint:
            raise
        raise unreadable(server, namespace, error.message) from error
    return list(found.values())


def unreadable(server: str, namespace: str, why: str) -> BadManifest:
    """What a server tells is no policy: without knowing it nothing of the namespace is used."""
    return BadManifest(
        f"{server} tells a policy for {namespace} that cannot be read: {why}",
        cause=why,
        hint=f"tell the owners of {namespace}: nothing of it is used before that is mended",
    )


def _person(key: PinnedKey) -> TrustedKey:
    return TrustedKey(f"key {key.fingerprint}", key.pem.encode(), key.fingerprint)


def _changed(pin: Pin, added: Iterable[str], before: str) -> SignersChanged:
    fresh = sorted(added)
    return SignersChanged(
        f"{before}{pin.server} names other keys for {pin.namespace} than on {pin.since[:10]}: {', '.join(fresh)}",
        cause=f"remembered are {', '.join(sorted(pin.fingerprints))}",
        hint=f"ask the owners of {pin.namespace}, by another way, whether these are theirs; if so: "
        f"deltareg signers accept {pin.namespace} --remote {pin.server}",
        added=fresh,
        remembered=sorted(pin.fingerprints),
    )


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
