"""What the owners of a namespace ask of what happens in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import AfterValidator, Field
from sqlalchemy import Connection

from deltareg.errors import InvalidArgument
from deltareg.manifest import Document
from deltareg.signing.keys import CURVES, fingerprint_of, parse_public_key, pem_of
from deltareg_registry.records.namespaces import namespace_named

__all__ = [
    "MOST_SIGNERS",
    "NamespacePolicy",
    "PublicKey",
    "Signer",
    "changed_policy",
    "keys_in",
    "policy_of",
    "signers_of",
]

MOST_SIGNERS = 20
_KEY_LIMIT = 16 << 10
_PEM = re.compile(r"-----BEGIN ([A-Z ]+)-----.*?-----END \1-----", re.DOTALL)


def _checked_key(text: str) -> str:
    try:
        key = load_pem_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("it is not a public key in PEM form") from error
    # With another key nobody could use the namespace: clients refuse a policy that they cannot check.
    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise ValueError(f"it is no key that deltas are signed with: the curves are {', '.join(CURVES)}")
    return text


PublicKey = Annotated[str, Field(min_length=1, max_length=_KEY_LIMIT), AfterValidator(_checked_key)]
"""A public key in PEM form, on a curve that deltas are signed with."""


class NamespacePolicy(Document):
    """The rules of a namespace."""

    deletion: bool = Field(default=False, description="whether publishers may remove versions")
    signed_by: list[PublicKey] = Field(
        default=[], max_length=MOST_SIGNERS, description="PEM public keys, one of which has to have signed a version"
    )


class Signer(Document):
    """A key, one of which has to have signed what is in a namespace."""

    fingerprint: str = Field(description="SHA-256 of the PEM text, as deltareg signers shows it")
    pem: str


def signers_of(policy: NamespacePolicy) -> list[Signer]:
    """The keys of a policy, each with what it is called."""
    keys = [parse_public_key(text.encode(), "a key of the namespace") for text in policy.signed_by]
    return [Signer(fingerprint=fingerprint_of(key), pem=pem_of(key).decode()) for key in keys]


def keys_in(text: str, what: str) -> list[str]:
    """The public keys in a text, one PEM block after another, each once and written in one way.

    `what` names the text. Raises InvalidArgument for anything else that is in it.
    """
    blocks = [found[0] for found in _PEM.finditer(text)]
    if not blocks or _PEM.sub("", text).strip():
        raise InvalidArgument(
            f"{what} is not one PEM public key after another",
            hint="write what is in the .pub.pem of deltareg sign --generate-key",
        )
    return list(dict.fromkeys(pem_of(parse_public_key(block.encode(), what)).decode() for block in blocks))


def changed_policy(connection: Connection, namespace: str, changes: Mapping[str, object]) -> dict[str, object]:
    """The rules of a namespace with some of them changed, as its row has them. Raises NotFound."""
    return {**policy_of(connection, namespace).model_dump(by_alias=True), **changes}


def policy_of(connection: Connection, namespace: str) -> NamespacePolicy:
    """The rules of a namespace. Raises NotFound."""
    return NamespacePolicy.model_validate(namespace_named(connection, namespace).policy)
