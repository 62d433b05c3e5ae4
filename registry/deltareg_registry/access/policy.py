"""What each route needs: one table, in which every route has its line.

A route that is missing here stops the server from starting, and so does a line without a route.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from types import MappingProxyType

__all__ = ["PAGES", "ROUTES", "Need", "check_complete"]


class Need(Enum):
    """What a request must bring. The roles are those in the namespace that the path names."""

    NOTHING = "nothing"
    """Open to everybody; what is shown still depends on who asks."""
    TOKEN = "a token"
    READ = "reader"
    PUBLISH = "publisher"
    """Of a namespace that is made where it is absent, if whoever asks may make one."""
    CHANGE = "publisher of a namespace that is there"
    OWN = "owner"
    ADMIN = "administrator"
    METRICS = "administrator, or an address of the same machine"


PAGES: Mapping[str, Need] = MappingProxyType(
    {
        "GET /": Need.NOTHING,
        "GET /static/{file}": Need.NOTHING,
        "GET /sign-in": Need.NOTHING,
        "POST /sign-in": Need.NOTHING,
        "POST /sign-out": Need.NOTHING,
        "GET /d/{namespace}/{name}": Need.READ,
        "POST /d/{namespace}/{name}/versions/{version}": Need.CHANGE,
        "POST /d/{namespace}/{name}/versions/{version}/channels": Need.CHANGE,
        "GET /fits": Need.NOTHING,
        "POST /fits": Need.NOTHING,
        "GET /compare": Need.NOTHING,
        "GET /n": Need.NOTHING,
        "POST /n": Need.TOKEN,
        "GET /n/{namespace}": Need.READ,
        "POST /n/{namespace}": Need.OWN,
        "POST /n/{namespace}/signers": Need.OWN,
        "POST /n/{namespace}/quota": Need.ADMIN,
        "POST /n/{namespace}/members": Need.OWN,
        "POST /n/{namespace}/webhooks": Need.OWN,
        "POST /n/{namespace}/webhooks/{webhook}": Need.OWN,
        "GET /tokens": Need.TOKEN,
        "POST /tokens": Need.TOKEN,
        "POST /tokens/{token}": Need.TOKEN,
        "GET /audit": Need.TOKEN,
    }
)
"""The need of each page. For these alone the token may come in a browser's cookie."""

ROUTES: Mapping[str, Need] = MappingProxyType(
    {
        **PAGES,
        "GET /healthz": Need.NOTHING,
        "GET /readyz": Need.NOTHING,
        "GET /metrics": Need.METRICS,
        "GET /api/v1": Need.NOTHING,
        "GET /api/v1/openapi.json": Need.NOTHING,
        "GET /api/v1/whoami": Need.TOKEN,
        "POST /api/v1/deltas/{namespace}/{name}/missing": Need.PUBLISH,
        "GET /api/v1/search": Need.NOTHING,
        "GET /api/v1/index.ndjson": Need.NOTHING,
        "POST /api/v1/check": Need.NOTHING,
        "GET /api/v1/compare": Need.NOTHING,
        "GET /api/v1/deltas": Need.NOTHING,
        "GET /api/v1/deltas/{namespace}/{name}": Need.READ,
        "GET /api/v1/deltas/{namespace}/{name}/resolve": Need.READ,
        "GET /api/v1/deltas/{namespace}/{name}/versions/{version}": Need.READ,
        "GET /api/v1/deltas/{namespace}/{name}/versions/{version}/signatures": Need.READ,
        "GET /api/v1/namespaces": Need.NOTHING,
        "POST /api/v1/namespaces": Need.TOKEN,
        "GET /api/v1/namespaces/{namespace}": Need.READ,
        "PATCH /api/v1/namespaces/{namespace}": Need.OWN,
        "DELETE /api/v1/namespaces/{namespace}": Need.OWN,
        "PUT /api/v1/namespaces/{namespace}/quota": Need.ADMIN,
        "GET /api/v1/namespaces/{namespace}/pulls": Need.READ,
        "GET /api/v1/namespaces/{namespace}/members": Need.READ,
        "PUT /api/v1/namespaces/{namespace}/members/{user}": Need.OWN,
        "DELETE /api/v1/namespaces/{namespace}/members/{user}": Need.OWN,
        "GET /api/v1/namespaces/{namespace}/webhooks": Need.OWN,
        "POST /api/v1/namespaces/{namespace}/webhooks": Need.OWN,
        "PATCH /api/v1/namespaces/{namespace}/webhooks/{webhook}": Need.OWN,
        "DELETE /api/v1/namespaces/{namespace}/webhooks/{webhook}": Need.OWN,
        "POST /api/v1/namespaces/{namespace}/webhooks/{webhook}/test": Need.OWN,
        "GET /api/v1/namespaces/{namespace}/webhooks/{webhook}/deliveries": Need.OWN,
        "GET /api/v1/users": Need.ADMIN,
        "POST /api/v1/users": Need.ADMIN,
        "PATCH /api/v1/users/{user}": Need.ADMIN,
        "POST /api/v1/users/{user}/tokens": Need.ADMIN,
        "GET /api/v1/tokens": Need.TOKEN,
        "POST /api/v1/tokens": Need.TOKEN,
        "DELETE /api/v1/tokens/{token}": Need.TOKEN,
        "GET /api/v1/audit": Need.TOKEN,
        "GET /api/v1/statistics": Need.TOKEN,
        "PUT /api/v1/deltas/{namespace}/{name}/versions/{version}": Need.PUBLISH,
        "PUT /api/v1/deltas/{namespace}/{name}/versions/{version}/yank": Need.CHANGE,
        "DELETE /api/v1/deltas/{namespace}/{name}/versions/{version}/yank": Need.CHANGE,
        "PUT /api/v1/deltas/{namespace}/{name}/versions/{version}/deprecation": Need.CHANGE,
        "DELETE /api/v1/deltas/{namespace}/{name}/versions/{version}/deprecation": Need.CHANGE,
        "PUT /api/v1/deltas/{namespace}/{name}/channels/{channel}": Need.CHANGE,
        "DELETE /api/v1/deltas/{namespace}/{name}/channels/{channel}": Need.CHANGE,
        "GET /v2/": Need.NOTHING,
        "GET /v2/token": Need.NOTHING,
        "GET /v2/{namespace}/{name}/blobs/{digest}": Need.READ,
        "DELETE /v2/{namespace}/{name}/blobs/{digest}": Need.OWN,
        "POST /v2/{namespace}/{name}/blobs/uploads": Need.PUBLISH,
        "POST /v2/{namespace}/{name}/blobs/uploads/": Need.PUBLISH,
        "GET /v2/{namespace}/{name}/blobs/uploads/{identity}": Need.PUBLISH,
        "PATCH /v2/{namespace}/{name}/blobs/uploads/{identity}": Need.PUBLISH,
        "PUT /v2/{namespace}/{name}/blobs/uploads/{identity}": Need.PUBLISH,
        "DELETE /v2/{namespace}/{name}/blobs/uploads/{identity}": Need.PUBLISH,
        "GET /v2/{namespace}/{name}/manifests/{reference}": Need.READ,
        "PUT /v2/{namespace}/{name}/manifests/{reference}": Need.PUBLISH,
        "DELETE /v2/{namespace}/{name}/manifests/{reference}": Need.OWN,
        "GET /v2/{namespace}/{name}/tags/list": Need.READ,
        # The specification forbids 404 here: who may not read is shown nothing.
        "GET /v2/{namespace}/{name}/referrers/{digest}": Need.NOTHING,
        "GET /v2/_catalog": Need.NOTHING,
        "GET /v2/{rest:path}": Need.NOTHING,
        "POST /v2/{rest:path}": Need.NOTHING,
        "PUT /v2/{rest:path}": Need.NOTHING,
        "PATCH /v2/{rest:path}": Need.NOTHING,
        "DELETE /v2/{rest:path}": Need.NOTHING,
    }
)
"""The need of each route, as METHOD and path template."""


def check_complete(routes: Iterable[str]) -> None:
    """Raise AssertionError unless the table has exactly these routes."""
    found = set(routes)
    missing, stale = sorted(found - ROUTES.keys()), sorted(ROUTES.keys() - found)
    if missing or stale:
        raise AssertionError(f"routes without a need: {missing}; needs without a route: {stale}")
