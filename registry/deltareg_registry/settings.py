"""What a server is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["NamespaceMakers", "ServerSettings"]

NamespaceMakers = Literal["everybody", "admins"]
"""Who may make a namespace: whoever has a token, or only the administrators of the registry."""


@dataclass(frozen=True)
class ServerSettings:
    """Where a server keeps what it has, and what it allows.

    `data` holds the database and the blobs, unless `database` (a SQLAlchemy URL, `postgresql://…`) and `storage`
    (`s3://bucket/prefix`) name other places: then several processes may share them. Sizes are in bytes, times in
    seconds.
    """

    data: Path
    database: str | None = None
    storage: str | None = None
    url: str | None = None
    """The URL that clients use, where a proxy stands in front; without it, that of the request."""
    public: bool = False
    """Whether new namespaces may be read by everybody, without a token."""
    namespace_makers: NamespaceMakers = "everybody"
    grace: float = 3600.0
    """How long a blob that no manifest names is kept, and an upload that nobody continues is too, times 24."""
    redirect: bool = True
    """Whether blobs are fetched from the storage itself, by signed URLs, where it can sign."""
    accel: str | None = None
    """The internal location at which nginx serves the blob files itself (X-Accel-Redirect)."""
    blob_limit: int = 1 << 40
    manifest_limit: int = 4 << 20
    silence: float = 60.0
    """How long an upload waits for the next bytes of a request: a connection may be dead without anybody knowing."""
    rate_limit: float | None = None
    """Requests per second that one address or token may make in the long run; None sets no limit."""
    document_limit: int = 64 << 20
    """Bytes of the longest body that /api/v1 takes; most of its routes take less."""
    body_seconds: float = 60.0
    """How long such a body may take to arrive, and a second more for each 100 kB of it."""
    webhook_hosts: tuple[str, ...] = ()
    """Hosts and networks (`hooks.example.org`, `10.1.0.0/16`) that webhooks may reach although they are private."""
    gc_seconds: float | None = None
    """How often what nothing names is removed, by one process of all; None leaves that to `deltareg-registry gc`."""

    @property
    def database_url(self) -> str:
        """The SQLAlchemy URL of the database."""
        if self.database is None:
            return f"sqlite:///{self.data / 'registry.db'}"
        for scheme in ("postgresql://", "postgres://"):
            if self.database.startswith(scheme):
                return "postgresql+psycopg://" + self.database.removeprefix(scheme)
        return self.database
