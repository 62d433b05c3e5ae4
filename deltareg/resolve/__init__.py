"""From what a recipe wants to what is to be applied: versions that exist, fit the base and go together."""

from __future__ import annotations

from deltareg.resolve.policy import Judge, Policy, Pool, Refusal
from deltareg.resolve.resolve import Base, Choice, Resolution, resolve
from deltareg.resolve.source import LOCAL, Candidate, Details, RegistrySource, RemoteSource, Source, Sources

__all__ = [
    "LOCAL",
    "Base",
    "Candidate",
    "Choice",
    "Details",
    "Judge",
    "Policy",
    "Pool",
    "Refusal",
    "RegistrySource",
    "RemoteSource",
    "Resolution",
    "Source",
    "Sources",
    "resolve",
]
