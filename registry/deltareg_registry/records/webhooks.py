"""Webhooks of namespaces, and the messages that wait for them."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, case, delete, exists, func, insert, select, update

from deltareg.errors import Conflict, NotFound
from deltareg_registry.access.principal import ANONYMOUS, Principal
from deltareg_registry.database import at, from_now, now
from deltareg_registry.database.tables import deliveries, webhooks
from deltareg_registry.records.audit import record
from deltareg_registry.records.namespaces import lock_namespace

__all__ = [
    "Delivery",
    "Due",
    "Webhook",
    "add_webhook",
    "anything_due",
    "claim",
    "delete_webhook",
    "enable_webhook",
    "forget_old",
    "list_deliveries",
    "list_webhooks",
    "settle",
    "webhook_of",
]

MOST_WEBHOOKS = 50
"""How many a namespace may have."""
LEASE_SECONDS = 60
"""After so long another process takes over a delivery that was claimed and not settled."""
MOST_FAILURES = 10
"""After so many deliveries that were given up, one after another, a webhook is disabled."""
_GIVE_UP = timedelta(days=1)
_KEPT_SECONDS = 30 * 86400


@dataclass(frozen=True)
class Webhook:
    """A webhook, without its secret."""

    id: str
    namespace: str
    url: str
    events: list[str]
    created: str
    disabled: str | None


@dataclass(frozen=True)
class Delivery:
    """A message for a webhook and what became of it."""

    id: int
    event: str
    created: str
    due: str | None
    attempts: int
    tried: str | None
    status: int | None
    fault: str | None


@dataclass(frozen=True)
class Due:
    """A delivery that this process has claimed, and has to settle."""

    id: int
    webhook: str
    url: str
    secret: str
    event: str
    payload: str
    created: str
    attempts: int


def add_webhook(
    connection: Connection,
    principal: Principal,
    namespace: str,
    url: str,
    events: Sequence[str],
    *,
    address: str | None = None,
) -> tuple[Webhook, str]:
    """Make a webhook; returns it and its secret, which is not shown again. Raises NotFound, Conflict."""
    lock_namespace(connection, namespace)
    if len(list_webhooks(connection, namespace)) >= MOST_WEBHOOKS:
        raise Conflict(f"{namespace} has {MOST_WEBHOOKS} webhooks already", hint="delete one first")
    # The form of https://www.standardwebhooks.com, for which there are libraries in every language.
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    webhook = Webhook(secrets.token_hex(8), namespace, url, sorted(set(events)), now(), None)
    values = {
        "id": webhook.id,
        "namespace": namespace,
        "url": url,
        "secret": secret,
        "events": webhook.events,
        "created": webhook.created,
    }
    connection.execute(insert(webhooks).values(values))
    detail = {"url": url, "events": webhook.events}
    record(connection, principal, "webhook.create", webhook.id, namespace=namespace, address=address, detail=detail)
    return webhook, secret


def list_webhooks(connection: Connection, namespace: str) -> list[Webhook]:
    """The webhooks of a namespace, in the order in which they were made."""
    table = webhooks.c
    wanted = select(table.id, table.namespace, table.url, table.events, table.created, table.disabled)
    rows = connection.execute(wanted.where(table.namespace == namespace).order_by(table.created, table.id))
    return [Webhook(row.id, row.namespace, row.url, row.events, row.created, row.disabled) for row in rows]


def webhook_of(connection: Connection, namespace: str, identity: str) -> Webhook:
    """A webhook of a namespace. Raises NotFound."""
    found = [webhook for webhook in list_webhooks(connection, namespace) if webhook.id == identity]
    if not found:
        raise NotFound(f"{namespace} has no webhook {identity}")
    return found[0]


def delete_webhook(
    connection: Connection, principal: Principal, namespace: str, identity: str, *, address: str | None = None
) -> None:
    """Remove a webhook with all that waits for it. Raises NotFound."""
    webhook = webhook_of(connection, namespace, identity)
    connection.execute(delete(webhooks).where(webhooks.c.id == identity))
    detail = {"url": webhook.url}
    record(connection, principal, "webhook.delete", identity, namespace=namespace, address=address, detail=detail)


def enable_webhook(
    connection: Connection, principal: Principal, namespace: str, identity: str, *, enabled: bool, address: str | None
) -> Webhook:
    """Let a webhook be told again, or no longer, also not of what waits for it. Raises NotFound."""
    before = webhook_of(connection, namespace, identity)
    if enabled == (before.disabled is not None):
        disabled = None if enabled else now()
        which = webhooks.c.id == identity
        connection.execute(update(webhooks).where(which).values(disabled=disabled, failures=0))
        if not enabled:
            _give_up_waiting(connection, identity)
        action = "webhook.enable" if enabled else "webhook.disable"
        record(connection, principal, action, identity, namespace=namespace, address=address)
    return webhook_of(connection, namespace, identity)


def list_deliveries(connection: Connection, webhook: str, *, limit: int) -> list[Delivery]:
    """What was sent to a webhook or waits for it, the latest first."""
    table = deliveries.c
    columns = (table.id, table.event, table.created, table.due, table.attempts, table.tried, table.status, table.fault)
    wanted = select(*columns).where(table.webhook == webhook).order_by(table.id.desc()).limit(limit)
    return [Delivery(*row) for row in connection.execute(wanted)]


def anything_due(connection: Connection) -> bool:
    """Whether there is a delivery to claim."""
    return connection.execute(select(exists().where(deliveries.c.due <= now()))).scalar_one()


def claim(connection: Connection, *, limit: int) -> list[Due]:
    """Take deliveries whose time has come: nobody else takes them before LEASE_SECONDS are over.

    Namespaces take turns: one whose receivers are slow, and that has thousands of messages, holds up itself alone.
    """
    table = deliveries.c
    turn = func.row_number().over(partition_by=webhooks.c.namespace, order_by=(table.due, table.id))
    waiting = select(table.id, turn.label("turn")).join(webhooks).where(table.due <= now()).subquery()
    free = (
        select(table.id)
        .join(waiting, waiting.c.id == table.id)
        .where(table.due <= now())
        .order_by(waiting.c.turn, table.due)
        .limit(limit)
        # Processes that claim at once get different ones. In SQLite one transaction writes at a time.
        .with_for_update(of=deliveries, skip_locked=True)
    )
    chosen = list(connection.execute(free).scalars())
    if not chosen:
        return []
    lease = from_now(LEASE_SECONDS)
    connection.execute(
        update(deliveries).where(table.id.in_(chosen)).values(due=lease, attempts=table.attempts + 1, tried=now())
    )
    columns = (webhooks.c.url, webhooks.c.secret, table.event, table.payload, table.created, table.attempts)
    wanted = select(table.id, table.webhook, *columns).join(webhooks).where(table.id.in_(chosen)).order_by(table.id)
    return [Due(*row) for row in connection.execute(wanted)]


def settle(connection: Connection, due: Due, *, status: int | None, fault: str | None, wait: float) -> None:
    """Note what came of a delivery. Where there is a `fault` it is tried again in `wait` seconds, but not for ever."""
    row = deliveries.c.id == due.id
    if fault is None:
        connection.execute(update(deliveries).where(row).values(due=None, status=status, fault=None))
        connection.execute(update(webhooks).where(webhooks.c.id == due.webhook).values(failures=0))
        return
    next_time = datetime.now(UTC) + timedelta(seconds=wait)
    given_up = next_time - datetime.fromisoformat(due.created) > _GIVE_UP
    # The webhook may have been disabled while this was under way.
    enabled = exists().where(webhooks.c.id == due.webhook, webhooks.c.disabled.is_(None))
    again = None if given_up else case((enabled, at(next_time)))
    connection.execute(update(deliveries).where(row).values(due=again, status=status, fault=fault))
    if given_up:
        _note_failure(connection, due.webhook)


def forget_old(connection: Connection) -> int:
    """Remove deliveries that were done, or given up, 30 days ago; returns how many."""
    old = from_now(-_KEPT_SECONDS)
    done = connection.execute(delete(deliveries).where(deliveries.c.due.is_(None), deliveries.c.created < old))
    return done.rowcount


def _note_failure(connection: Connection, webhook: str) -> None:
    which = webhooks.c.id == webhook
    connection.execute(update(webhooks).where(which).values(failures=webhooks.c.failures + 1))
    failing = (which, webhooks.c.disabled.is_(None), webhooks.c.failures >= MOST_FAILURES)
    if connection.execute(update(webhooks).where(*failing).values(disabled=now())).rowcount == 0:
        return
    _give_up_waiting(connection, webhook)
    namespace = connection.execute(select(webhooks.c.namespace).where(which)).scalar_one()
    detail = {"failures": MOST_FAILURES}
    record(connection, ANONYMOUS, "webhook.disable", webhook, namespace=namespace, detail=detail)


def _give_up_waiting(connection: Connection, webhook: str) -> None:
    waiting = (deliveries.c.webhook == webhook, deliveries.c.due.is_not(None))
    fault = func.coalesce(deliveries.c.fault, "the webhook was disabled")
    connection.execute(update(deliveries).where(*waiting).values(due=None, fault=fault))
