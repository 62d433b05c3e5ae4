"""Whether the storage can be used, asked now and then: whoever asks a server whether it is ready may ask often."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

from deltareg.errors import BucketUnavailable
from deltareg_registry.storage import Storage

__all__ = ["Readiness"]

_SECONDS = 5.0
_PATIENCE = 3.0


class Readiness:
    """What the storage answered last, for five seconds. Its methods may be called from any thread."""

    def __init__(self, storage: Storage, *, seconds: float = _SECONDS, patience: float = _PATIENCE) -> None:
        self._storage = storage
        self._seconds = seconds
        self._patience = patience
        self._lock = threading.Lock()
        self._asked = 0.0
        self._answer: Future[None] | None = None

    def check(self) -> None:
        """Raise BucketUnavailable, NotFound or NotAllowed unless the storage can be used.

        Waits three seconds at most; an object store that is gone is given up much later, and only one thread waits.
        """
        with self._lock:
            answer = self._answer
            if answer is None or (answer.done() and time.monotonic() - self._asked > self._seconds):
                answer = self._answer = self._ask()
        try:
            answer.result(self._patience)
        except TimeoutError:
            raise BucketUnavailable(
                f"the storage {self._storage.label} does not answer", hint="try again later"
            ) from None

    def _ask(self) -> Future[None]:
        self._asked = time.monotonic()
        answer: Future[None] = Future()
        threading.Thread(target=self._settle, args=(answer,), daemon=True).start()
        return answer

    def _settle(self, answer: Future[None]) -> None:
        try:
            self._storage.check()
        except BaseException as error:
            answer.set_exception(error)
        else:
            answer.set_result(None)
