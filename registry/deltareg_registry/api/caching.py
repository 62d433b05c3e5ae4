"""Answers that are kept: what they are made of never changes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Cache"]

Value = TypeVar("Value")


class Cache(Generic[Value]):
    """Values by key, those that were asked for last; `size_of` each, `limit` in all. Safe for threads."""

    def __init__(self, limit: int, size_of: Callable[[Value], int] = lambda value: 1) -> None:
        self._limit = limit
        self._size_of = size_of
        self._lock = threading.Lock()
        self._found: OrderedDict[str, Value] = OrderedDict()
        self._size = 0

    def get(self, key: str) -> Value | None:
        """The value of a key; None where it is not kept."""
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
            return self._found.get(key)

    def put(self, key: str, value: Value) -> None:
        """Keep a value, unless it is larger than all may be."""
        with self._lock:
            before = self._found.pop(key, None)
            self._size += self._size_of(value) - (0 if before is None else self._size_of(before))
            self._found[key] = value
            while self._size > self._limit:
                self._size -= self._size_of(self._found.popitem(last=False)[1])
