"""Webhooks of namespaces: who is told of what happens there."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import Field

from deltareg.errors import Conflict
from deltareg.manifest import Document
from deltareg_registry.api.asking import PROBLEMS, Asking, problems
from deltareg_registry.api.bodies import bounded
from deltareg_registry.api.documents import DOCUMENT_LIMIT, Change, IdPath, Limit, NamespacePath
from deltareg_registry.records.events import PING, Event, emit_to
from deltareg_registry.records.webhooks import (
    Delivery,
    Webhook,
    add_webhook,
    delete_webhook,
    enable_webhook,
    list_deliveries,
    list_webhooks,
    webhook_of,
)
from deltareg_registry.state import address_of, state_of
from deltareg_registry.upkeep.addresses import check_url

__all__ = ["webhooks_router"]

webhooks_router = APIRouter(
    prefix="/api/v1/namespaces/{namespace}/webhooks",
    tags=["webhooks"],
    responses=PROBLEMS | problems(413),
    route_class=bounded(DOCUMENT_LIMIT),
)


class WebhookDetails(Document):
    """A webhook, without its secret."""

    id: str
    url: str
    events: list[str]
    created: str
    disabled: str | None = Field(description="since when it is told nothing; null: it is told")


class WebhookList(Document):
    """The webhooks of a namespace."""

    webhooks: list[WebhookDetails]


class GivenWebhook(WebhookDetails):
    """A new webhook."""

    secret: str = Field(description="what its messages are signed with; shown this once")


class NewWebhook(Change):
    """A webhook that is wanted."""

    url: str = Field(min_length=1, max_length=2000, pattern="^[!-~]+$", description="https://… or http://…")
    events: list[Event] = Field(min_length=1, max_length=50)


class WebhookChange(Change):
    """What is to change."""

    enabled: bool


class DeliveryDetails(Document):
    """A message and what became of it."""

    id: int
    event: str
    created: str
    attempts: int
    tried: str | None = Field(description="when it was sent last")
    due: str | None = Field(description="when it is sent next; null: it arrived, or was given up")
    status: int | None = Field(description="the HTTP status of the last answer")
    fault: str | None = Field(description="why it did not arrive; null: it did, or was not sent yet")


class DeliveryList(Document):
    """The messages to a webhook, the latest first."""

    deliveries: list[DeliveryDetails]


class Queued(Document):
    """A message that is on its way."""

    delivery: int


@webhooks_router.get("")
def webhooks(request: Request, asking: Asking, namespace: NamespacePath) -> WebhookList:
    """The webhooks of a namespace."""
    with state_of(request).database.reading() as connection:
        return WebhookList(webhooks=[_details(webhook) for webhook in list_webhooks(connection, namespace)])


@webhooks_router.post("", status_code=201)
def create_webhook(request: Request, asking: Asking, namespace: NamespacePath, wanted: NewWebhook) -> GivenWebhook:
    """Let a URL be told of events, by messages as https://www.standardwebhooks.com describes them."""
    state = state_of(request)
    check_url(wanted.url, state.settings.webhook_hosts)
    address = address_of(request)
    with state.database.writing() as connection:
        made, secret = add_webhook(connection, asking, namespace, wanted.url, wanted.events, address=address)
    return GivenWebhook(**_details(made).model_dump(), secret=secret)


@webhooks_router.patch("/{webhook}")
def change_webhook(
    request: Request, asking: Asking, namespace: NamespacePath, webhook: IdPath, wanted: WebhookChange
) -> WebhookDetails:
    """Let a webhook be told again, or no longer."""
    with state_of(request).database.writing() as connection:
        address = address_of(request)
        done = enable_webhook(connection, asking, namespace, webhook, enabled=wanted.enabled, address=address)
        return _details(done)


@webhooks_router.delete("/{webhook}", status_code=204)
def remove_webhook(request: Request, asking: Asking, namespace: NamespacePath, webhook: IdPath) -> None:
    """Remove a webhook with all that waits for it."""
    with state_of(request).database.writing() as connection:
        delete_webhook(connection, asking, namespace, webhook, address=address_of(request))


@webhooks_router.post("/{webhook}/test", status_code=202)
def test_webhook(request: Request, asking: Asking, namespace: NamespacePath, webhook: IdPath) -> Queued:
    """Send a webhook a message of the type `ping`; its deliveries tell what came of it."""
    with state_of(request).database.writing() as connection:
        if webhook_of(connection, namespace, webhook).disabled is not None:
            raise Conflict(f"webhook {webhook} is disabled", hint="enable it first")
        return Queued(delivery=emit_to(connection, webhook, namespace, PING, namespace))


@webhooks_router.get("/{webhook}/deliveries")
def deliveries(
    request: Request, asking: Asking, namespace: NamespacePath, webhook: IdPath, limit: Limit = 100
) -> DeliveryList:
    """What was sent to a webhook in the last 30 days, or waits for it."""
    with state_of(request).database.reading() as connection:
        webhook_of(connection, namespace, webhook)
        return DeliveryList(deliveries=[_delivery(one) for one in list_deliveries(connection, webhook, limit=limit)])


def _details(webhook: Webhook) -> WebhookDetails:
    return WebhookDetails(
        id=webhook.id,
        url=webhook.url,
        events=webhook.events,
        created=webhook.created,
        disabled=webhook.disabled,
    )


def _delivery(one: Delivery) -> DeliveryDetails:
    return DeliveryDetails(
        id=one.id,
        event=one.event,
        created=one.created,
        attempts=one.attempts,
        tried=one.tried,
        due=one.due,
        status=one.status,
        fault=one.fault,
    )
