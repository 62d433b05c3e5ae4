"""What the owners of a namespace ask of what happens in it."""

from __future__ import annotations

from typing import Annotated

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import AfterValidator, Field
from sqlalchemy import Connection

from deltareg.manifest import Document
from deltareg.signing.keys import CURVES
from deltareg_registry.records.namespaces import namespace_named

__all__ = ["NamespacePolicy", "PublicKey", "policy_of"]

_KEY_LIMIT = 16 << 10


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
        default=[], max_length=20, description="PEM public keys, one of which has to have signed a version"
    )


def policy_of(connection: Connection, namespace: str) -> NamespacePolicy:
    """The rules of a namespace. Raises NotFound."""
    return NamespacePolicy.model_validate(namespace_named(connection, namespace).policy)
