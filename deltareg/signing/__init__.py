"""Signatures of deltas: what is signed, by whom, and who is trusted. model-signing does the cryptography."""

from __future__ import annotations

from deltareg.signing.bundle import SIGNATURE_TYPE, Statement, read_bundle
from deltareg.signing.keys import generate_key
from deltareg.signing.policy import Policies, Policy
from deltareg.signing.sign import CertificateSigner, KeySigner, Signer, SigstoreSigner, bundle_of
from deltareg.signing.source import ReferrerSource, StoreReferrers, bundle_in
from deltareg.signing.trust import Trusted, check_trusted, trusted
from deltareg.signing.verify import SignatureRow, signatures, verify

__all__ = [
    "SIGNATURE_TYPE",
    "CertificateSigner",
    "KeySigner",
    "Policies",
    "Policy",
    "ReferrerSource",
    "SignatureRow",
    "Signer",
    "SigstoreSigner",
    "Statement",
    "StoreReferrers",
    "Trusted",
    "bundle_in",
    "bundle_of",
    "check_trusted",
    "generate_key",
    "read_bundle",
    "signatures",
    "trusted",
    "verify",
]
