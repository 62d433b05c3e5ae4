"""What tests of the server share."""

from __future__ import annotations

from tests.servers.deltareg_server import server

__all__ = ["server"]
