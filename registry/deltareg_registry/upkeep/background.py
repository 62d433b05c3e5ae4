"""What a server does beside answering: it sends to webhooks, writes down what it has counted, and collects."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial

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
    flush = partial(_flush, state)
    async with anyio.create_task_group() as group:
        group.start_soon(deliver_forever, state)
        group.start_soon(_do_forever, flush, _FLUSH_SECONDS)
        group.start_soon(_do_forever, partial(_forget, state), _FORGET_SECONDS)
        if state.settings.gc_seconds is not None:
            # Often enough that a process which is started anew each hour gets to it, too.
            look = min(state.settings.gc_seconds, _LOOK_SECONDS)
            group.start_soon(_do_forever, partial(collect_if_due, state, state.settings.gc_seconds), look)
        yield
        group.cancel_scope.cancel()
    await _done(flush)


async def _do_forever(work: Callable[[], None], seconds: float) -> None:
    while True:
        # Not all processes at once.
        await anyio.sleep(seconds * random.uniform(0.8, 1.2))
        await _done(work)


async def _done(work: Callable[[], None]) -> None:
    try:
        await run_sync(work)
    except Exception:
        # It would end all that is done here, while the server goes on to answer.
        _log.exception("a regular task failed")


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
