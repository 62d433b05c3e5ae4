"""The first tables, written out: they stay as they were, whatever becomes of `database.tables`."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from deltareg_registry.database.triggers import FULLTEXT, REVISIONS

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_NAME = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")
_DIGEST = sa.String(71)
_TIME = sa.String(27)


def upgrade() -> None:
    _names()
    _content()
    _versions()
    _work()
    dialect = op.get_bind().dialect.name
    for statement in (*FULLTEXT[dialect], *REVISIONS[dialect]):
        op.execute(statement)


def _names() -> None:
    op.create_table(
        "namespaces",
        sa.Column("name", _NAME, nullable=False),
        sa.Column("public", sa.Boolean(), nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.Column("quota", sa.BigInteger(), comment="bytes of all blobs of its repositories; null: no limit"),
        sa.Column("policy", sa.JSON(), nullable=False, comment="what its owners ask for: deletion, signatures"),
        sa.Column(
            "revision",
            sa.BigInteger(),
            server_default="0",
            nullable=False,
            comment="triggers raise it as its names change",
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_namespaces")),
    )
    op.create_table(
        "repositories",
        sa.Column("id", _NUMBER, nullable=False),
        sa.Column("namespace", _NAME, nullable=False),
        sa.Column("name", _NAME, nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.ForeignKeyConstraint(["namespace"], ["namespaces.name"], name=op.f("fk_repositories_namespace")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_repositories")),
        sa.UniqueConstraint("namespace", "name", name=op.f("uq_repositories_namespace_name")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "users",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("admin", sa.Boolean(), nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.Column("disabled", _TIME),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_users")),
    )
    op.create_table(
        "members",
        sa.Column("namespace", _NAME, nullable=False),
        sa.Column("user", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("since", _TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace"], ["namespaces.name"], name=op.f("fk_members_namespace"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["user"], ["users.name"], name=op.f("fk_members_user"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("namespace", "user", name=op.f("pk_members")),
    )
    op.create_index(op.f("ix_members_user"), "members", ["user"])
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("user", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False, comment="SHA-256 of 256 random bits: nothing to guess"),
        sa.Column("scopes", sa.JSON(), nullable=False, comment="null: all that the user may do"),
        sa.Column("created", _TIME, nullable=False),
        sa.Column("expires", _TIME),
        sa.Column("revoked", _TIME),
        sa.Column("used", _TIME),
        sa.ForeignKeyConstraint(["user"], ["users.name"], name=op.f("fk_tokens_user"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tokens")),
        sa.UniqueConstraint("hash", name=op.f("uq_tokens_hash")),
    )
    op.create_index(op.f("ix_tokens_user"), "tokens", ["user"])


def _content() -> None:
    op.create_table(
        "blobs",
        sa.Column("digest", _DIGEST, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.Column(
            "touched",
            _TIME,
            nullable=False,
            comment="gc spares what was sent or asked for lately; empty: condemned",
        ),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_blobs")),
    )
    op.create_index(op.f("ix_blobs_touched"), "blobs", ["touched"])
    op.create_table(
        "repository_blobs",
        sa.Column("repository", _NUMBER, nullable=False),
        sa.Column("digest", _DIGEST, nullable=False),
        sa.ForeignKeyConstraint(["digest"], ["blobs.digest"], name=op.f("fk_repository_blobs_digest")),
        sa.ForeignKeyConstraint(
            ["repository"], ["repositories.id"], name=op.f("fk_repository_blobs_repository"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("repository", "digest", name=op.f("pk_repository_blobs")),
        comment="which repository a blob may be read in: who knows a digest may not have the right to its bytes",
    )
    op.create_index(op.f("ix_repository_blobs_digest"), "repository_blobs", ["digest"])
    op.create_table(
        "manifests",
        sa.Column("repository", _NUMBER, nullable=False),
        sa.Column("digest", _DIGEST, nullable=False),
        sa.Column("media_type", sa.String(length=255), nullable=False),
        sa.Column(
            "artifact_type", sa.String(length=255), comment="that of the manifest, else the media type of its config"
        ),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("subject", _DIGEST),
        sa.Column("annotations", sa.JSON(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.Column("touched", _TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["repository"], ["repositories.id"], name=op.f("fk_manifests_repository"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("repository", "digest", name=op.f("pk_manifests")),
    )
    op.create_index(op.f("ix_manifests_repository_subject"), "manifests", ["repository", "subject"])
    op.create_table(
        "manifest_blobs",
        sa.Column("repository", sa.BigInteger(), nullable=False),
        sa.Column("manifest", _DIGEST, nullable=False),
        sa.Column("digest", _DIGEST, nullable=False),
        sa.PrimaryKeyConstraint("repository", "manifest", "digest", name=op.f("pk_manifest_blobs")),
        comment="the blobs, and the manifests of an index, that a manifest needs",
    )
    op.create_index(op.f("ix_manifest_blobs_digest"), "manifest_blobs", ["digest"])
    op.create_table(
        "tags",
        sa.Column("repository", _NUMBER, nullable=False),
        sa.Column("tag", sa.String(length=128), nullable=False),
        sa.Column("digest", _DIGEST, nullable=False),
        sa.Column("updated", _TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["repository"], ["repositories.id"], name=op.f("fk_tags_repository"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("repository", "tag", name=op.f("pk_tags")),
        comment="names that move: channels, and what other programs push; versions have a table of their own",
    )
    op.create_table(
        "removed",
        sa.Column("repository", _NUMBER, nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("digest", _DIGEST, nullable=False),
        sa.ForeignKeyConstraint(
            ["repository"], ["repositories.id"], name=op.f("fk_removed_repository"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("repository", "version", name=op.f("pk_removed")),
        comment="versions that were removed: never free for other bytes",
    )
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("repository", _NUMBER, nullable=False),
        sa.Column("user", sa.String(length=64)),
        sa.Column("created", _TIME, nullable=False),
        sa.Column("updated", _TIME, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False, comment="bytes that have arrived"),
        sa.Column("parts", sa.JSON(), nullable=False, comment="what they are stored as"),
        sa.ForeignKeyConstraint(
            ["repository"], ["repositories.id"], name=op.f("fk_uploads_repository"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uploads")),
    )
    op.create_index(op.f("ix_uploads_updated"), "uploads", ["updated"])


def _versions() -> None:
    op.create_table(
        "versions",
        sa.Column("id", _NUMBER, nullable=False, comment="grows with each publish"),
        sa.Column("repository", _NUMBER, nullable=False),
        sa.Column("namespace", _NAME, nullable=False),
        sa.Column("name", _NAME, nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("digest", _DIGEST, nullable=False),
        sa.Column("manifest_size", sa.Integer(), nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.Column("publisher", sa.String(length=64)),
        sa.Column("yanked", sa.Text()),
        sa.Column("deprecated", sa.Text()),
        sa.Column("config", _DIGEST, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False, comment="bytes of manifest and blobs"),
        sa.Column("raw_size", sa.BigInteger(), nullable=False, comment="bytes of post's tensors"),
        sa.Column("parameters", sa.BigInteger(), nullable=False),
        sa.Column("base", sa.Text(), nullable=False, comment="id of the base"),
        sa.Column("base_digest", _DIGEST, nullable=False),
        sa.Column("fingerprint", _DIGEST, nullable=False),
        sa.Column("space", _DIGEST, nullable=False),
        sa.Column("tokenizer_core", _DIGEST),
        sa.Column("tokenizer_added", _DIGEST),
        sa.Column("model_type", sa.String(length=255)),
        sa.Column("licence", sa.String(length=128), nullable=False),
        sa.Column("description", sa.Text()),
        sa.Column("preset", sa.String(length=16), nullable=False),
        sa.Column("exactness", sa.String(length=16), nullable=False),
        sa.ForeignKeyConstraint(["repository"], ["repositories.id"], name=op.f("fk_versions_repository")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_versions")),
        sa.UniqueConstraint("repository", "version", name=op.f("uq_versions_repository_version")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_versions_namespace"), "versions", ["namespace"])
    op.create_index(op.f("ix_versions_repository_digest"), "versions", ["repository", "digest"])
    op.create_table(
        "terms",
        sa.Column("id", _NUMBER, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False, comment="SHA-256 of kind and value, without case"),
        sa.Column("value", sa.Text(), nullable=False, comment="as it was first written"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_terms")),
        sa.UniqueConstraint("key", name=op.f("uq_terms_key")),
        comment="values of versions that are searched for, by the number that `searchable` has in their place",
    )
    op.create_table(
        "searchable",
        sa.Column("version", _NUMBER, nullable=False),
        sa.Column("namespace", _NAME, nullable=False),
        sa.Column("name", _NAME, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("yanked", sa.Boolean(), nullable=False),
        sa.Column("fingerprint", sa.BigInteger(), comment="number of a term"),
        sa.Column("space", sa.BigInteger(), comment="number of a term"),
        sa.Column("tokenizer_core", sa.BigInteger(), comment="number of a term"),
        sa.Column("tokenizer_added", sa.BigInteger(), comment="number of a term"),
        sa.Column("licence", sa.BigInteger(), comment="number of a term"),
        sa.Column("model_type", sa.BigInteger(), comment="number of a term"),
        sa.Column("base", sa.BigInteger(), comment="number of a term"),
        sa.ForeignKeyConstraint(["version"], ["versions.id"], name=op.f("fk_searchable_version"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_searchable")),
        comment="what is searched for in versions: rows so short that a search may look at every one of them",
    )
    op.create_index(op.f("ix_searchable_base"), "searchable", ["base"])
    op.create_index(op.f("ix_searchable_fingerprint"), "searchable", ["fingerprint"])
    op.create_index(op.f("ix_searchable_namespace_name_version"), "searchable", ["namespace", "name", "version"])
    op.create_index(op.f("ix_searchable_size_version"), "searchable", ["size", "version"])
    op.create_index(op.f("ix_searchable_space"), "searchable", ["space"])
    op.create_table(
        "pulls",
        sa.Column("repository", _NUMBER, nullable=False),
        sa.Column("digest", _DIGEST, nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("last", _TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["repository"], ["repositories.id"], name=op.f("fk_pulls_repository"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("repository", "digest", name=op.f("pk_pulls")),
        comment="how often a manifest was fetched",
    )


def _work() -> None:
    op.create_table(
        "audit",
        sa.Column("id", _NUMBER, nullable=False),
        sa.Column("time", _TIME, nullable=False),
        sa.Column("actor", sa.String(length=64)),
        sa.Column("token", sa.String(length=16)),
        sa.Column("address", sa.String(length=64)),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("namespace", _NAME),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_audit_namespace"), "audit", ["namespace"])
    op.create_index(op.f("ix_audit_time"), "audit", ["time"])
    op.create_table(
        "webhooks",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("namespace", _NAME, nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("secret", sa.String(length=64), nullable=False),
        sa.Column("events", sa.JSON(), nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.Column("disabled", _TIME),
        sa.Column(
            "failures",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="deliveries given up, one after another",
        ),
        sa.ForeignKeyConstraint(
            ["namespace"], ["namespaces.name"], name=op.f("fk_webhooks_namespace"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhooks")),
    )
    op.create_index(op.f("ix_webhooks_namespace"), "webhooks", ["namespace"])
    op.create_table(
        "deliveries",
        sa.Column("id", _NUMBER, nullable=False),
        sa.Column("webhook", sa.String(length=16), nullable=False),
        sa.Column("event", sa.String(length=64), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.Column("due", _TIME, comment="when it is tried next; null: done or given up"),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("tried", _TIME, comment="when it was tried last"),
        sa.Column("status", sa.Integer(), comment="of the last answer"),
        sa.Column("fault", sa.Text()),
        sa.ForeignKeyConstraint(["webhook"], ["webhooks.id"], name=op.f("fk_deliveries_webhook"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deliveries")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_deliveries_due"), "deliveries", ["due"])
    op.create_index(op.f("ix_deliveries_webhook"), "deliveries", ["webhook"])
    op.create_table(
        "upkeep",
        sa.Column("task", sa.String(length=32), nullable=False),
        sa.Column("started", _TIME, nullable=False),
        sa.Column("ended", _TIME),
        sa.Column("fault", sa.Text()),
        sa.PrimaryKeyConstraint("task", name=op.f("pk_upkeep")),
        comment="what is done regularly by one process of several: when it was begun and ended last",
    )
