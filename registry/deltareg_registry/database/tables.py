"""The tables: what the registry knows. Bytes of blobs lie in the storage, those of manifests here.

A change here needs a migration, as `tests/registry/test_migrations.py` will say.

Times are RFC 3339 texts in UTC with microseconds, so that they compare as they follow one another in every database.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

__all__ = [
    "CONDEMNED",
    "TERM_KINDS",
    "audit",
    "blobs",
    "deliveries",
    "manifest_blobs",
    "manifests",
    "members",
    "metadata",
    "namespaces",
    "pulls",
    "removed",
    "repositories",
    "repository_blobs",
    "searchable",
    "tags",
    "terms",
    "tokens",
    "upkeep",
    "uploads",
    "users",
    "versions",
    "webhooks",
]

# Constraints need names, so that migrations can change them in both databases.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite gives numbers by itself only to INTEGER, and those of removed rows again where a table has not
# `sqlite_autoincrement`: receivers know messages by their numbers, and uploads repositories.
_NUMBER = BigInteger().with_variant(Integer, "sqlite")
_DIGEST = String(71)
_TIME = String(27)

TERM_KINDS = ("fingerprint", "space", "tokenizer_core", "tokenizer_added", "licence", "model_type", "base")
"""The columns of `versions` whose values are searched for as a whole."""

CONDEMNED = ""
"""The `touched` of a blob that the collector is about to remove: earlier than every time. Its bytes may be gone
already, and it is absent to everybody else until somebody sends it again."""

# By code point in both databases, whatever the language of the server.
_NAME = String(64).with_variant(String(64, collation="C"), "postgresql")

namespaces = Table(
    "namespaces",
    metadata,
    Column("name", _NAME, primary_key=True),
    Column("public", Boolean, nullable=False),
    Column("created", _TIME, nullable=False),
    Column("quota", BigInteger, comment="bytes of all blobs of its repositories; null: no limit"),
    Column("policy", JSON, nullable=False, comment="what its owners ask for: deletion, signatures"),
    Column("revision", BigInteger, nullable=False, server_default="0", comment="triggers raise it as its names change"),
)

repositories = Table(
    "repositories",
    metadata,
    Column("id", _NUMBER, primary_key=True),
    Column("namespace", _NAME, ForeignKey("namespaces.name"), nullable=False),
    Column("name", _NAME, nullable=False),
    Column("created", _TIME, nullable=False),
    UniqueConstraint("namespace", "name"),
    sqlite_autoincrement=True,
)

users = Table(
    "users",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("admin", Boolean, nullable=False),
    Column("created", _TIME, nullable=False),
    Column("disabled", _TIME),
)

members = Table(
    "members",
    metadata,
    Column("namespace", _NAME, ForeignKey("namespaces.name", ondelete="CASCADE"), primary_key=True),
    Column("user", String(64), ForeignKey("users.name", ondelete="CASCADE"), primary_key=True, index=True),
    Column("role", String(16), nullable=False),
    Column("since", _TIME, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("user", String(64), ForeignKey("users.name", ondelete="CASCADE"), nullable=False, index=True),
    Column("name", String(100), nullable=False),
    Column("hash", String(64), nullable=False, unique=True, comment="SHA-256 of 256 random bits: nothing to guess"),
    Column("scopes", JSON, nullable=False, comment="null: all that the user may do"),
    Column("created", _TIME, nullable=False),
    Column("expires", _TIME),
    Column("revoked", _TIME),
    Column("used", _TIME),
)

blobs = Table(
    "blobs",
    metadata,
    Column("digest", _DIGEST, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("created", _TIME, nullable=False),
    Column(
        "touched",
        _TIME,
        nullable=False,
        index=True,
        comment="gc spares what was sent or asked for lately; empty: condemned",
    ),
)

repository_blobs = Table(
    "repository_blobs",
    metadata,
    Column("repository", _NUMBER, ForeignKey("repositories.id", ondelete="CASCADE"), primary_key=True),
    Column("digest", _DIGEST, ForeignKey("blobs.digest"), primary_key=True, index=True),
    comment="which repository a blob may be read in: who knows a digest may not have the right to its bytes",
)

manifests = Table(
    "manifests",
    metadata,
    Column("repository", _NUMBER, ForeignKey("repositories.id", ondelete="CASCADE"), primary_key=True),
    Column("digest", _DIGEST, primary_key=True),
    Column("media_type", String(255), nullable=False),
    Column("artifact_type", String(255), comment="that of the manifest, else the media type of its config"),
    Column("size", Integer, nullable=False),
    Column("subject", _DIGEST),
    Column("annotations", JSON, nullable=False),
    Column("content", LargeBinary, nullable=False),
    Column("created", _TIME, nullable=False),
    Column("touched", _TIME, nullable=False),
    Index(None, "repository", "subject"),
)

manifest_blobs = Table(
    "manifest_blobs",
    metadata,
    Column("repository", BigInteger, primary_key=True),
    Column("manifest", _DIGEST, primary_key=True),
    Column("digest", _DIGEST, primary_key=True, index=True),
    comment="the blobs, and the manifests of an index, that a manifest needs",
)

tags = Table(
    "tags",
    metadata,
    Column("repository", _NUMBER, ForeignKey("repositories.id", ondelete="CASCADE"), primary_key=True),
    Column("tag", String(128), primary_key=True),
    Column("digest", _DIGEST, nullable=False),
    Column("updated", _TIME, nullable=False),
    comment="names that move: channels, and what other programs push; versions have a table of their own",
)

versions = Table(
    "versions",
    metadata,
    Column("id", _NUMBER, primary_key=True, comment="grows with each publish"),
    Column("repository", _NUMBER, ForeignKey("repositories.id"), nullable=False),
    Column("namespace", _NAME, nullable=False, index=True),
    Column("name", _NAME, nullable=False),
    Column("version", String(64), nullable=False),
    Column("digest", _DIGEST, nullable=False),
    Column("manifest_size", Integer, nullable=False),
    Column("created", _TIME, nullable=False),
    Column("publisher", String(64)),
    Column("yanked", Text),
    Column("deprecated", Text),
    Column("config", _DIGEST, nullable=False),
    Column("size", BigInteger, nullable=False, comment="bytes of manifest and blobs"),
    Column("raw_size", BigInteger, nullable=False, comment="bytes of post's tensors"),
    Column("parameters", BigInteger, nullable=False),
    Column("base", Text, nullable=False, comment="id of the base"),
    Column("base_digest", String(71), nullable=False),
    Column("fingerprint", _DIGEST, nullable=False),
    Column("space", _DIGEST, nullable=False),
    Column("tokenizer_core", _DIGEST),
    Column("tokenizer_added", _DIGEST),
    Column("model_type", String(255)),
    Column("licence", String(128), nullable=False),
    Column("description", Text),
    Column("preset", String(16), nullable=False),
    Column("exactness", String(16), nullable=False),
    UniqueConstraint("repository", "version"),
    Index(None, "repository", "digest"),
    sqlite_autoincrement=True,
)

searchable = Table(
    "searchable",
    metadata,
    Column("version", _NUMBER, ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True),
    Column("namespace", _NAME, nullable=False),
    Column("name", _NAME, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("yanked", Boolean, nullable=False),
    *(
        Column(kind, BigInteger, index=kind in ("fingerprint", "space", "base"), comment="number of a term")
        for kind in TERM_KINDS
    ),
    Index(None, "namespace", "name", "version"),
    Index(None, "size", "version"),
    comment="what is searched for in versions: rows so short that a search may look at every one of them",
)

terms = Table(
    "terms",
    metadata,
    Column("id", _NUMBER, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("key", String(64), nullable=False, unique=True, comment="SHA-256 of kind and value, without case"),
    Column("value", Text, nullable=False, comment="as it was first written"),
    comment="values of versions that are searched for, by the number that `searchable` has in their place",
)

removed = Table(
    "removed",
    metadata,
    Column("repository", _NUMBER, ForeignKey("repositories.id", ondelete="CASCADE"), primary_key=True),
    Column("version", String(64), primary_key=True),
    Column("digest", _DIGEST, nullable=False),
    comment="versions that were removed: never free for other bytes",
)

uploads = Table(
    "uploads",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("repository", _NUMBER, ForeignKey("repositories.id", ondelete="CASCADE"), nullable=False),
    Column("user", String(64)),
    Column("created", _TIME, nullable=False),
    Column("updated", _TIME, nullable=False, index=True),
    Column("size", BigInteger, nullable=False, comment="bytes that have arrived"),
    Column("parts", JSON, nullable=False, comment="what they are stored as"),
)

upkeep = Table(
    "upkeep",
    metadata,
    Column("task", String(32), primary_key=True),
    Column("started", _TIME, nullable=False),
    Column("ended", _TIME),
    Column("fault", Text),
    comment="what is done regularly by one process of several: when it was begun and ended last",
)

audit = Table(
    "audit",
    metadata,
    Column("id", _NUMBER, primary_key=True),
    Column("time", _TIME, nullable=False, index=True),
    Column("actor", String(64)),
    Column("token", String(16)),
    Column("address", String(64)),
    Column("action", String(64), nullable=False),
    Column("namespace", _NAME, index=True),
    Column("subject", Text, nullable=False),
    Column("detail", JSON, nullable=False),
    sqlite_autoincrement=True,
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("namespace", _NAME, ForeignKey("namespaces.name", ondelete="CASCADE"), nullable=False, index=True),
    Column("url", Text, nullable=False),
    Column("secret", String(64), nullable=False),
    Column("events", JSON, nullable=False),
    Column("created", _TIME, nullable=False),
    Column("disabled", _TIME),
    Column("failures", Integer, nullable=False, server_default="0", comment="deliveries given up, one after another"),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", _NUMBER, primary_key=True),
    Column("webhook", String(16), ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("event", String(64), nullable=False),
    Column("payload", Text, nullable=False),
    Column("created", _TIME, nullable=False),
    Column("due", _TIME, index=True, comment="when it is tried next; null: done or given up"),
    Column("attempts", Integer, nullable=False),
    Column("tried", _TIME, comment="when it was tried last"),
    Column("status", Integer, comment="of the last answer"),
    Column("fault", Text),
    sqlite_autoincrement=True,
)

pulls = Table(
    "pulls",
    metadata,
    Column("repository", _NUMBER, ForeignKey("repositories.id", ondelete="CASCADE"), primary_key=True),
    Column("digest", _DIGEST, primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("last", _TIME, nullable=False),
    comment="how often a manifest was fetched",
)
