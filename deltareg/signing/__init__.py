"""Signatures of deltas: what is signed, by whom, and who is trusted. model-signing does the cryptography."""

from __future__ import annotations

from deltareg.signing.bundle import SIGNATURE_TYPE, Statement, read_bundle
from deltareg.signing.keys import generate_key
from deltareg.signing.pins import PINS_NAME, Pin, PinnedKey, Pins, told_keys, unreadable
from deltareg.signing.policy import Policies, Policy, Verified
from deltareg.signing.recorded import record, verify_recorded
from deltareg.signing.sign import CertificateSigner, KeySigner, Signer, SigstoreSigner, bundle_of
from deltareg.signing.source import ReferrerSource, StoreReferrers, bundle_in
from deltareg.signing.trust import Trusted, check_trusted, trusted
from deltareg.signing.verify import SignatureRow, signatures, verify

__all__ = [
    "PINS_NAME",
    "SIGNATURE_TYPE",
    "CertificateSigner",
    "KeySigner",
    "Pin",
    "PinnedKey",
    "Pins",
    "Policies",
    "Policy",
    "ReferrerSource",
    "SignatureRow",
    "Signer",
    "SigstoreSigner",
    "Statement",
    "StoreReferrers",
    "Trusted",
    "Verified",
    "bundle_in",
    "bundle_of",
    "check_trusted",
    "generate_key",
    "read_bundle",
    "record",
    "signatures",
    "told_keys",
    "trusted",
    "unreadable",
    "verify",
    "verify_recorded",
]
