"""Policies: whose deltas have to be signed, and by whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from deltareg.digest import Digest
from deltareg.errors import DeltaregError, SignatureInvalid, SignatureMissing, SignatureUntrusted
from deltareg.names import Reference
from deltareg.signing.source import ReferrerSource
from deltareg.signing.trust import trusted
from deltareg.signing.verify import SignatureRow, verify

__all__ = ["Policies", "Policy"]


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

    def check(self, reference: Reference, digest: Digest, sources: Iterable[ReferrerSource]) -> list[SignatureRow]:
        """The signatures that let a delta be used: none where no policy asks for any.

        The `sources` are asked in turn, until one has a signature that suffices. Raises SignatureMissing,
        SignatureUntrusted, SignatureInvalid of the one that knew most; RemoteUnavailable.
        """
        policy = self.of(reference.repository)
        if policy is None:
            return []
        people = [trusted(one) for one in policy.signed_by]
        refused: DeltaregError | None = None
        for source in sources:
            try:
                return verify(source, reference, digest, people)
            except SignatureMissing as error:
                refused = refused or error
            except (SignatureUntrusted, SignatureInvalid) as error:
                refused = error
        assert refused is not None, "a policy is checked somewhere"
        raise type(refused)(
            f"{refused.message}; the policy for {policy.namespace} in {policy.file} asks for that",
            cause=refused.cause,
            hint=refused.hint,
            **refused.data,
        )
