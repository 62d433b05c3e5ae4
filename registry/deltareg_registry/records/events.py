"""What happens in namespaces, for those who want to be told: written in the transaction of the change, sent later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal, get_args

from sqlalchemy import Connection, insert, select

from deltareg.names import Reference
from deltareg_registry.access.principal import Principal
from deltareg_registry.database import now
from deltareg_registry.database.tables import deliveries, webhooks
from deltareg_registry.records.audit import record

__all__ = ["EVENTS", "PING", "Event", "announce", "emit", "emit_to"]

Event = Literal[
    "version.publish",
    "version.yank",
    "version.unyank",
    "version.deprecate",
    "version.undeprecate",
    "version.remove",
    "channel.set",
    "channel.remove",
    "referrer.add",
]
"""What webhooks may be told."""
EVENTS: tuple[Event, ...] = get_args(Event)

PING = "ping"
"""What a test of a webhook sends."""


def announce(
    connection: Connection,
    principal: Principal,
    event: Event,
    reference: Reference,
    detail: Mapping[str, object],
    *,
    address: str | None,
) -> None:
    """Write into the audit log what happened to a name, and let the webhooks of its namespace be told."""
    record(
        connection,
        principal,
        event,
        str(reference),
        namespace=reference.namespace,
        address=address,
        detail=detail,
    )
    emit(connection, reference.namespace, event, str(reference), detail)


def emit(
    connection: Connection, namespace: str, event: Event, subject: str, detail: Mapping[str, object] | None = None
) -> None:
    """Let every webhook of a namespace that wants to know be told of `event`, once this transaction is committed.

    `subject` is what it happened to, such as `acme/search:1.0.0`; `detail` goes into the message as it is.
    """
    found = connection.execute(
        select(webhooks.c.id, webhooks.c.events).where(webhooks.c.namespace == namespace, webhooks.c.disabled.is_(None))
    )
    for row in found.all():
        if event in row.events:
            emit_to(connection, row.id, namespace, event, subject, detail)


def emit_to(
    connection: Connection,
    webhook: str,
    namespace: str,
    event: str,
    subject: str,
    detail: Mapping[str, object] | None = None,
) -> int:
    """Let one webhook be told; returns the number of the delivery."""
    time = now()
    payload = {
        "type": event,
        "timestamp": time,
        "data": {"namespace": namespace, "subject": subject, "detail": dict(detail or {})},
    }
    values = {
        "webhook": webhook,
        "event": event,
        "payload": json.dumps(payload, separators=(",", ":")),
        "created": time,
        "due": time,
        "attempts": 0,
    }
    done = connection.execute(insert(deliveries).values(values).returning(deliveries.c.id))
    return int(done.scalar_one())
