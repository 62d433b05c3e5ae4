"""Namespaces: what is in them, who belongs to them, who is told."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from deltareg.errors import InvalidArgument
from deltareg_registry.access.principal import Principal, Role
from deltareg_registry.api.documents import After, IdPath, NamespacePath
from deltareg_registry.api.members import NewRole, delete_member, put_member
from deltareg_registry.api.namespaces import (
    NamespaceChange,
    NewNamespace,
    PolicyChange,
    Quota,
    change,
    create_namespace,
    namespace_details,
    namespaces,
    set_quota,
)
from deltareg_registry.api.webhooks import (
    NewWebhook,
    WebhookChange,
    change_webhook,
    create_webhook,
    remove_webhook,
    test_webhook,
)
from deltareg_registry.pages.forms import Asking, Posted, model_of
from deltareg_registry.pages.rendering import render
from deltareg_registry.records.events import EVENTS
from deltareg_registry.records.members import list_members
from deltareg_registry.records.names import list_deltas
from deltareg_registry.records.policies import keys_in, signers_of
from deltareg_registry.records.statistics import count_namespaces, version_pulls
from deltareg_registry.records.webhooks import Delivery, list_deliveries, list_webhooks
from deltareg_registry.state import state_of

__all__ = ["namespace_pages"]

namespace_pages = APIRouter(include_in_schema=False)

_PAGE = 50
_SHOWN_PULLS = 10
_SHOWN_DELIVERIES = 5


@namespace_pages.get("/n")
def namespaces_page(request: Request, asking: Asking, cursor: After = None) -> Response:
    """The namespaces that one may read."""
    found = namespaces(request, asking, cursor=cursor, limit=_PAGE)
    return render(request, "namespaces.html", found=found)


@namespace_pages.post("/n")
def make_namespace(request: Request, asking: Asking, form: Posted) -> Response:
    """Make a namespace, and show it."""
    wanted = model_of(NewNamespace, {"name": form.text("name"), "public": form.text("public") == "1"})
    made = create_namespace(request, asking, wanted)
    return RedirectResponse(f"/n/{made.name}", 303)


@namespace_pages.get("/n/{namespace}")
def namespace_page(
    request: Request,
    asking: Asking,
    namespace: NamespacePath,
    cursor: Annotated[str | None, Query(max_length=1000)] = None,
) -> Response:
    """A namespace, with what its owners may change."""
    return _page(request, asking, namespace, cursor=cursor)


@namespace_pages.post("/n/{namespace}")
def change_namespace(request: Request, asking: Asking, namespace: NamespacePath, form: Posted) -> Response:
    """Change who may read a namespace."""
    change(request, asking, namespace, NamespaceChange(public=form.text("public") == "1"))
    return _back(namespace, "settings")


@namespace_pages.post("/n/{namespace}/signers")
def change_signers(request: Request, asking: Asking, namespace: NamespacePath, form: Posted) -> Response:
    """Set which keys have to have signed what is in a namespace; an empty text asks for no signatures."""
    text = form.text("keys")
    keys = [] if text is None else keys_in(text, "what was filled in")
    wanted = NamespaceChange(policy=model_of(PolicyChange, {"signed_by": keys}))
    change(request, asking, namespace, wanted)
    return _back(namespace, "signers")


@namespace_pages.post("/n/{namespace}/quota")
def change_quota(request: Request, asking: Asking, namespace: NamespacePath, form: Posted) -> Response:
    """Set how much a namespace may hold."""
    set_quota(request, asking, namespace, model_of(Quota, {"bytes": form.whole("bytes")}))
    return _back(namespace, "settings")


@namespace_pages.post("/n/{namespace}/members")
def change_member(request: Request, asking: Asking, namespace: NamespacePath, form: Posted) -> Response:
    """Give somebody a role, or take it away."""
    user = form.text("user")
    if user is None:
        raise InvalidArgument("no user is named")
    if form.text("action") == "remove":
        delete_member(request, asking, namespace, user)
    else:
        put_member(request, asking, namespace, user, model_of(NewRole, {"role": form.text("role")}))
    return _back(namespace, "members")


@namespace_pages.post("/n/{namespace}/webhooks")
def make_webhook(request: Request, asking: Asking, namespace: NamespacePath, form: Posted) -> Response:
    """Make a webhook. The page that answers is the only one that shows its secret."""
    wanted = model_of(NewWebhook, {"url": form.text("url"), "events": form.texts("events")})
    made = create_webhook(request, asking, namespace, wanted)
    return _page(request, asking, namespace, made=made.secret)


@namespace_pages.post("/n/{namespace}/webhooks/{webhook}")
def act_on_webhook(
    request: Request, asking: Asking, namespace: NamespacePath, webhook: IdPath, form: Posted
) -> Response:
    """Test a webhook, let it be told or no longer, or remove it."""
    action = form.text("action")
    if action == "test":
        test_webhook(request, asking, namespace, webhook)
    elif action in ("enable", "disable"):
        change_webhook(request, asking, namespace, webhook, WebhookChange(enabled=action == "enable"))
    elif action == "remove":
        remove_webhook(request, asking, namespace, webhook)
    else:
        raise InvalidArgument("nothing is said of what to do with the webhook")
    return _back(namespace, "webhooks")


def _back(namespace: str, part: str) -> Response:
    return RedirectResponse(f"/n/{namespace}#{part}", 303)


def _page(
    request: Request, asking: Principal, namespace: str, *, cursor: str | None = None, made: str | None = None
) -> Response:
    details = namespace_details(request, asking, namespace)
    owner = asking.role_in(namespace, public=details.public) is Role.OWNER
    with state_of(request).database.reading() as connection:
        deltas = list_deltas(connection, asking, namespace=namespace, cursor=cursor, limit=_PAGE)
        counted = count_namespaces(connection, [namespace])[0]
        pulls = [one for one in version_pulls(connection, namespace, limit=_SHOWN_PULLS) if one.count]
        # As in the interface: who is not signed in is not told who belongs to a namespace.
        members = list_members(connection, namespace) if asking.signed_in else None
        webhooks = list_webhooks(connection, namespace) if owner else []
        deliveries: dict[str, list[Delivery]] = {
            webhook.id: list_deliveries(connection, webhook.id, limit=_SHOWN_DELIVERIES) for webhook in webhooks
        }
    return render(
        request,
        "namespace.html",
        details=details,
        signers=signers_of(details.policy),
        counted=counted,
        owner=owner,
        admin=asking.admin and asking.unlimited,
        deltas=deltas,
        pulls=pulls,
        members=members,
        webhooks=webhooks,
        deliveries=deliveries,
        events=EVENTS,
        roles=[role.label for role in Role if role is not Role.NONE],
        made=made,
        cursor=cursor,
    )
