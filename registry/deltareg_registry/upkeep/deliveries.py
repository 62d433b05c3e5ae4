"""Sends what waits for webhooks, as https://www.standardwebhooks.com describes it.

Each message has the headers `webhook-id`, `webhook-timestamp` (seconds) and `webhook-signature`: `v1,` and the base64
of HMAC-SHA256 over `ID.TIMESTAMP.BODY`, keyed with what follows `whsec_` in the secret, decoded from base64. A
receiver that compares them, and the time with its clock, knows who sent it, and that nobody sends it again.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import random
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import httpx2
from anyio.to_thread import run_sync

from deltareg.errors import DeltaregError
from deltareg_registry import __version__
from deltareg_registry.records.webhooks import Due, anything_due, claim, settle
from deltareg_registry.state import State
from deltareg_registry.upkeep.addresses import Place, check_url, resolve

__all__ = ["backoff", "deliver_due", "deliver_forever", "open_sender", "signature"]

_SECONDS = 10.0
_AT_ONCE = 10
_POLL_SECONDS = 1.0
_FIRST_WAIT = 5.0
_LONGEST_WAIT = 4 * 3600.0

_log = logging.getLogger("deltareg_registry.webhooks")


def signature(secret: str, identity: str, timestamp: int, body: bytes) -> str:
    """What proves to a receiver that a message comes from this registry."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    told = hmac.new(key, f"{identity}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(told).decode()


def backoff(attempts: int) -> float:
    """Seconds to wait after so many attempts: from 5 s on twice as long each time, to 4 h, and up to a fifth more."""
    # Jitter: what failed together is not to come back together.
    return min(_FIRST_WAIT * 2.0 ** min(attempts - 1, 20), _LONGEST_WAIT) * random.uniform(1.0, 1.2)


@asynccontextmanager
async def open_sender() -> AsyncGenerator[httpx2.AsyncClient]:
    """The client that sends messages: no proxies, no redirects, no connection that is used twice."""
    # A kept connection is known by its address, and two hosts may share one: the second would not be verified.
    limits = httpx2.Limits(max_connections=_AT_ONCE, max_keepalive_connections=0)
    async with httpx2.AsyncClient(follow_redirects=False, trust_env=False, timeout=_SECONDS, limits=limits) as sender:
        yield sender


async def deliver_forever(state: State) -> None:
    """Send what is due until this is cancelled. Several processes may do so for one registry."""
    async with open_sender() as sender:
        while True:
            try:
                done = await deliver_due(state, sender)
            except DeltaregError as error:
                _log.warning("webhooks wait: %s", error.message)
                done = 0
            except Exception:
                # It would end all that is done beside answering.
                _log.exception("webhooks wait")
                done = 0
            if done < _AT_ONCE:
                await anyio.sleep(_POLL_SECONDS * random.uniform(0.8, 1.2))


async def deliver_due(state: State, sender: httpx2.AsyncClient, *, seconds: float = _SECONDS) -> int:
    """Send what is due, ten messages at once at most, each in `seconds`; returns how many. Raises DeltaregError."""
    claimed = await run_sync(_claimed, state)
    async with anyio.create_task_group() as group:
        for due in claimed:
            group.start_soon(_deliver, state, sender, due, seconds)
    return len(claimed)


def _claimed(state: State) -> list[Due]:
    with state.database.reading() as connection:
        if not anything_due(connection):
            return []
    with state.database.writing() as connection:
        return claim(connection, limit=_AT_ONCE)


async def _deliver(state: State, sender: httpx2.AsyncClient, due: Due, seconds: float) -> None:
    status, fault = await _send(state, sender, due, seconds)
    try:
        await run_sync(_settled, state, due, status, fault)
    except DeltaregError as error:
        # Its claim runs out, and then it is sent again: receivers know it by its id.
        _log.warning("a delivery is not settled: %s", error.message)


def _settled(state: State, due: Due, status: int | None, fault: str | None) -> None:
    with state.database.writing() as connection:
        settle(connection, due, status=status, fault=fault, wait=backoff(due.attempts))


async def _send(state: State, sender: httpx2.AsyncClient, due: Due, seconds: float) -> tuple[int | None, str | None]:
    """The status of the answer, and what is wrong with it."""
    try:
        with anyio.fail_after(seconds):
            place = check_url(due.url, state.settings.webhook_hosts)
            addresses = await run_sync(resolve, place, state.settings.webhook_hosts, abandon_on_cancel=True)
            response = await _post(sender, due, place, addresses)
    except TimeoutError:
        return None, f"no answer in {seconds:g} s"
    except DeltaregError as error:
        return None, error.message
    except (OSError, httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
        return None, f"not reached: {type(error).__name__}"
    except Exception:
        # It would come back for ever, and keep the others of its round from being sent.
        _log.exception("a message could not be made")
        return None, "the server failed"
    if response.is_success:
        return response.status_code, None
    return response.status_code, "redirects are not followed" if response.is_redirect else "refused by the receiver"


async def _post(sender: httpx2.AsyncClient, due: Due, place: Place, addresses: list[str]) -> httpx2.Response:
    """The answer of the first address that can be reached, without its body: that is not read. Owners could see with
    it what only the server can reach, and it may have no end."""
    for address in addresses[:-1]:
        try:
            return await _answered(sender, _request(sender, due, place, address))
        except httpx2.ConnectError:
            continue
    return await _answered(sender, _request(sender, due, place, addresses[-1]))


async def _answered(sender: httpx2.AsyncClient, request: httpx2.Request) -> httpx2.Response:
    response = await sender.send(request, stream=True)
    await response.aclose()
    return response


def _request(sender: httpx2.AsyncClient, due: Due, place: Place, address: str) -> httpx2.Request:
    body = due.payload.encode()
    identity, now = f"msg_{due.id}", int(time.time())
    headers = {
        "Host": place.authority,
        "Content-Type": "application/json",
        "User-Agent": f"deltareg-registry/{__version__}",
        "webhook-id": identity,
        "webhook-timestamp": str(now),
        "webhook-signature": signature(due.secret, identity, now, body),
    }
    # The address that was looked at is connected to; TLS is checked for the name.
    extensions = {"sni_hostname": place.host}
    return sender.build_request("POST", place.at(address), headers=headers, content=body, extensions=extensions)
