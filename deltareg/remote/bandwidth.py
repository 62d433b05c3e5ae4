"""A limit of bytes a second that every transfer of the process shares."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

from deltareg.errors import InvalidArgument

__all__ = ["Bandwidth", "parse_rate"]

_BURST = 0.1
"""Seconds of the rate that may pass at once after a pause."""
_RATE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s?([kKMGT]?)(i?)B?(?:/s)?", re.ASCII)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


class Bandwidth:
    """A token bucket of `rate` bytes a second; None for no limit. Its methods may be called from any thread."""

    def __init__(
        self,
        rate: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if rate is not None and rate < 1:
            raise InvalidArgument(f"{rate} bytes a second let nothing pass", hint="write a rate such as 10MB/s")
        self.rate = rate
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._paid_until = clock() - _BURST

    def take(self, count: int) -> None:
        """Wait until `count` more bytes may pass."""
        if self.rate is None:
            return
        with self._lock:
            now = self._clock()
            # A debt: whoever takes more than there is waits for it, and those who come later wait behind him.
            self._paid_until = max(self._paid_until, now - _BURST) + count / self.rate
            wait = self._paid_until - now
        if wait > 0:
            self._sleep(wait)


def parse_rate(text: str) -> int:
    """Bytes a second of `10MB/s`, `500k`, `2MiB/s` or `1000000`. Raises InvalidArgument.

    Units are decimal, as networks are rated; those with an i are powers of 1024.
    """
    found = _RATE.fullmatch(text.strip())
    rate = 0 if found is None else int(float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2].upper()])
    if found is None or rate < 1 or (found[3] and not found[2]):
        raise InvalidArgument(f"{text!r} is no rate", hint="write 10MB/s, 500KB/s, 2MiB/s, or bytes a second")
    return rate
