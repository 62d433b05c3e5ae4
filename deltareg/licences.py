"""Licences: which are allowed."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["is_allowed"]

_TOKEN = re.compile(r"\(|\)|[^\s()]+")


def is_allowed(expression: str | None, allowed: Iterable[str]) -> bool:
    """Whether a licence, an SPDX expression, can be had under `allowed` ones, compared without regard to case.

    Of `A OR B` one suffices, of `A AND B` both are needed; `A WITH B` is a licence of its own. What is unknown is not
    allowed.
    """
    if expression is None:
        return False
    known = {one.casefold() for one in allowed}
    if expression.casefold() in known:
        return True
    tokens = _TOKEN.findall(expression)
    return _any(tokens, known) and not tokens


def _any(tokens: list[str], known: set[str]) -> bool:
    found = _all(tokens, known)
    while tokens and tokens[0].upper() == "OR":
        tokens.pop(0)
        found = _all(tokens, known) or found
    return found


def _all(tokens: list[str], known: set[str]) -> bool:
    found = _one(tokens, known)
    while tokens and tokens[0].upper() == "AND":
        tokens.pop(0)
        found = _one(tokens, known) and found
    return found


def _one(tokens: list[str], known: set[str]) -> bool:
    if not tokens:
        return False
    token = tokens.pop(0)
    if token == "(":
        found = _any(tokens, known)
        if tokens and tokens[0] == ")":
            tokens.pop(0)
        return found
    if len(tokens) > 1 and tokens[0].upper() == "WITH":
        tokens.pop(0)
        token = f"{token} WITH {tokens.pop(0)}"
    return token.casefold() in known
