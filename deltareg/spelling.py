"""Which known word was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean", "nearest"]


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` is most likely a slip of."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """` (did you mean …?)`, or nothing where no known word is near; `prefix` comes before the word."""
    near = nearest(word, known)
    return "" if near is None else f" (did you mean {prefix}{near}?)"
