"""What a server does beside answering: it sends to webhooks, and writes down what it has counted."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
from anyio.to_thread import run_sync

from deltareg.errors import DeltaregError
from deltareg_registry.records.webhooks import forget_old
from deltareg_registry.state import State
from deltareg_registry.upkeep.deliveries import deliver_forever

__all__ = ["background"]

_FLUSH_SECONDS = 3.0
_FORGET_SECONDS = 3600.0

_log = logging.getLogger("deltareg_registry.background")


@asynccontextmanager
async def background(state: State) -> AsyncGenerator[None]:
    """Do all of it as long as the body runs; what is counted by then is written down at the end."""
    async with anyio.create_task_group() as group:
        group.start_soon(deliver_forever, state)
        group.start_soon(_flush_forever, state)
        group.start_soon(_forget_forever, state)
        yield
        group.cancel_scope.cancel()
    await run_sync(_flush, state)


async def _flush_forever(state: State) -> None:
    while True:
        await anyio.sleep(_FLUSH_SECONDS)
        await run_sync(_flush, state)


async def _forget_forever(state: State) -> None:
    while True:
        await anyio.sleep(_FORGET_SECONDS)
        await run_sync(_forget, state)


def _flush(state: State) -> None:
    try:
        state.pulls.flush(state.database)
    except DeltaregError as error:
        _log.warning("pulls are not written down yet: %s", error.message)


def _forget(state: State) -> None:
    try:
        with state.database.writing() as connection:
            forget_old(connection)
    except DeltaregError as error:
        _log.warning("old deliveries stay: %s", error.message)
