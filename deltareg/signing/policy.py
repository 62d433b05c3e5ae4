"""Policies: whose deltas have to be signed, and by whom. Those of settings are here, those of servers in `pins`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from deltareg.digest import Digest
from deltareg.errors import DeltaregError, SignatureInvalid, SignatureMissing, SignatureUntrusted
from deltareg.names import Reference
from deltareg.signing.source import ReferrerSource
from deltareg.signing.trust import Trusted, trusted
from deltareg.signing.verify import SignatureRow, verify

__all__ = ["Policies", "Policy", "Verified", "demand"]


@dataclass(frozen=True)
class Verified:
    """A signature that was verified, and whose it is."""

    row: SignatureRow
    person: Trusted


@dataclass(frozen=True)
class Policy:
    """The deltas of a namespace, or of one namespace/name, have to be signed by one of `signed_by`."""

    namespace: str
    signed_by: tuple[str, ...]
    file: Path
    """The settings file that says so."""


@dataclass(frozen=True)
class Policies:
    """All policies, by namespace or namespace/name; that of a name wins over that of its namespace."""

    rules: Mapping[str, Policy] = field(default_factory=lambda: MappingProxyType({}))

    def of(self, repository: str) -> Policy | None:
        """The policy for `namespace/name`."""
        return self.rules.get(repository) or self.rules.get(repository.partition("/")[0])

    def check(self, reference: Reference, digest: Digest, sources: Iterable[ReferrerSource]) -> list[Verified]:
        """The signatures that let a delta be used: none where no policy asks for any. Raises what `demand` raises."""
        policy = self.of(reference.repository)
        if policy is None:
            return []
        people = [trusted(one) for one in policy.signed_by]
        why = f"the policy for {policy.namespace} in {policy.file} asks for that"
        return demand(people, why, reference, digest, sources)


def demand(
    people: Sequence[Trusted],
    why: str,
    reference: Reference,
    digest: Digest,
    sources: Iterable[ReferrerSource],
    *,
    hint: str | None = None,
) -> list[Verified]:
    """The signatures of `people` that let a delta be used; `why` ends the message where there is none.

    The `sources` are asked in turn, until one has a signature that suffices. `hint` is for what others have signed.
    Raises SignatureMissing, SignatureUntrusted, SignatureInvalid of the one that knew most; RemoteUnavailable.
    """
    refused: DeltaregError | None = None
    for source in sources:
        try:
            rows = verify(source, reference, digest, people)
        except SignatureMissing as error:
            refused = refused or error
        except (SignatureUntrusted, SignatureInvalid) as error:
            refused = error
        else:
            names = {one.name: one for one in people}
            return [Verified(row, names[row.trusted]) for row in rows if row.trusted is not None]
    assert refused is not None, "a policy is checked somewhere"
    own = hint if isinstance(refused, SignatureUntrusted) else None
    raise type(refused)(
        f"{refused.message}; {why}", cause=refused.cause, hint=own or refused.hint, **refused.data
    ) from refused
