"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path

from deltareg.errors import InvalidArgument

__all__ = ["expand_home"]


def expand_home(path: str | os.PathLike[str]) -> Path:
    """`path` with the home that `~` or `~user` at its start stands for. Raises InvalidArgument for an unknown user."""
    text = os.fspath(path)
    # Not by Path: it takes ./~ann, a directory that is called so, for the home of ann.
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text:
        user = text.partition("/")[0]
        raise InvalidArgument(
            f"{text} begins with {user}, which is nobody's home here",
            hint=f"write the whole path; for a directory that is called so, ./{user}",
            path=text,
        )
    return Path(expanded)
