"""Redirects: where one may lead."""

from __future__ import annotations

from urllib.parse import urljoin, urlsplit

from deltareg.errors import NotAllowed
from deltareg.remote.network import origin_of, shown

__all__ = ["redirected"]

_MOST = 5


def redirected(method: str, status: int, url: str, target: str, hops: int) -> str:
    """Where the answer `status` of `url`, the `hops`-th redirect in a row, leads to. Raises NotAllowed."""
    try:
        goal = urljoin(url, target)
        origin_of(goal)
        parts = urlsplit(goal)
    except ValueError:
        raise _misled(url, "to what is no URL of HTTP") from None
    if parts.username is not None or parts.password is not None:
        raise _misled(url, "to a URL with a password in it")
    if url.startswith("https:") and not goal.startswith("https:"):
        raise _misled(url, f"from https to {shown(goal)}, where anybody can listen")
    if hops > _MOST:
        raise _misled(url, f"more than {_MOST} times")
    if method not in ("GET", "HEAD") and status not in (307, 308):
        raise _misled(url, f"with {status}, after which nothing can be sent")
    return goal


def _misled(url: str, how: str) -> NotAllowed:
    return NotAllowed(f"{shown(url)} redirects {how}", cause="it was not followed", hint="check the URL of the remote")
