"""What a server does beside answering: it sends to webhooks, writes down what it has counted, and collects."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
from anyio.to_thread import run_sync

from deltareg.errors import DeltaregError
from deltareg_registry.records.upkeep import claim_run, end_run
from deltareg_registry.records.webhooks import forget_old
from deltareg_registry.state import State
from deltareg_registry.upkeep.collect import collect
from deltareg_registry.upkeep.deliveries import deliver_forever

__all__ = ["background", "collect_if_due"]

_FLUSH_SECONDS = 3.0
_FORGET_SECONDS = 3600.0
_LOOK_SECONDS = 60.0

_log = logging.getLogger("deltareg_registry.background")


@asynccontextmanager
async def background(state: State) -> AsyncGenerator[None]:
    """Do all of it as long as the body runs; what is counted by then is written down at the end."""
    async with anyio.create_task_group() as group:
        group.start_soon(deliver_forever, state)
        group.start_soon(_flush_forever, state)
        group.start_soon(_forget_forever, state)
        if state.settings.gc_seconds is not None:
            group.start_soon(_collect_forever, state, state.settings.gc_seconds)
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


async def _collect_forever(state: State, seconds: float) -> None:
    while True:
        # Often enough that a process which is started anew each hour gets to it, too.
        await anyio.sleep(min(seconds, _LOOK_SECONDS) * random.uniform(0.8, 1.2))
        await run_sync(collect_if_due, state, seconds)


def collect_if_due(state: State, seconds: float) -> None:
    """Collect unless some process has begun to in the last `seconds`. What goes wrong is logged and written down."""
    try:
        with state.database.writing() as connection:
            if not claim_run(connection, "gc", seconds):
                return
        fault = None
        try:
            report = collect(state.database, state.storage, state.settings.grace)
            _log.info("collected", extra=report.model_dump(by_alias=False))
        except DeltaregError as error:
            fault = error.message
            _log.warning("gc failed: %s", fault)
        with state.database.writing() as connection:
            end_run(connection, "gc", fault)
    except DeltaregError as error:
        _log.warning("gc waits: %s", error.message)


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
