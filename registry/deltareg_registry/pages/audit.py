"""The audit log."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from deltareg_registry.api.audit import AuditRecord, audit_log
from deltareg_registry.pages.forms import Asking
from deltareg_registry.pages.rendering import render

__all__ = ["audit_pages"]

audit_pages = APIRouter(include_in_schema=False)

_PAGE = 50

# Filters of a form that are left empty arrive as empty texts.
_Name = Annotated[str, Query(pattern=r"^\s*([a-z0-9]+([._-][a-z0-9]+)*)?\s*$", max_length=64)]
_Word = Annotated[str, Query(pattern=r"^[^\x00-\x1f\x7f]*$", max_length=100)]
_Time = Annotated[str, Query(max_length=40)]


@audit_pages.get("/audit")
def audit_page(
    request: Request,
    asking: Asking,
    namespace: _Name = "",
    actor: _Word = "",
    action: _Word = "",
    since: _Time = "",
    until: _Time = "",
    cursor: Annotated[str, Query(pattern="^[0-9]{0,18}$")] = "",
) -> Response:
    """What was changed, by whom."""
    asked = {
        "namespace": namespace.strip(),
        "actor": actor.strip(),
        "action": action.strip(),
        "since": since.strip(),
        "until": until.strip(),
    }
    wanted = {name: value or None for name, value in asked.items()}
    found = audit_log(request, asking, **wanted, cursor=cursor or None, limit=_PAGE)
    rows = [(one, _detail(one)) for one in found.records]
    return render(request, "audit.html", asked=asked, rows=rows, following=found.cursor, first=not cursor)


def _detail(one: AuditRecord) -> str:
    told = {name: value if isinstance(value, str) else json.dumps(value) for name, value in one.detail.items()}
    return ", ".join(f"{name}: {value}" for name, value in told.items())
