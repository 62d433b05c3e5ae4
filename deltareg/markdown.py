"""Text from elsewhere in the model cards that deltareg writes."""

from __future__ import annotations

import re

__all__ = ["plain"]


def plain(text: str) -> str:
    """Text from elsewhere on one line, without the signs that would make Markdown or HTML of it."""
    line = " ".join(text.split())
    return re.sub(r"[|`\[\]<>\x00-\x1f\x7f-\x9f]", "·", line)
