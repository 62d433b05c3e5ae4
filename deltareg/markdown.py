"""Text from elsewhere in the model cards that deltareg writes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, cast

__all__ = ["front_matter", "plain"]


def plain(text: str) -> str:
    """Text from elsewhere on one line, without the signs that would make Markdown or HTML of it."""
    line = " ".join(text.split())
    return re.sub(r"[|`\[\]<>\x00-\x1f\x7f-\x9f]", "·", line)


def front_matter(front: Mapping[str, Any]) -> list[str]:
    """The lines between the dashes of a model card: texts, and lists of texts, by their keys."""
    # JSON strings are YAML strings: nothing in a name can break out of the front matter.
    lines: list[str] = []
    for key, value in front.items():
        if isinstance(value, list):
            lines.append(f"{key}:")
            lines.extend(f"- {json.dumps(item, ensure_ascii=False)}" for item in cast("list[str]", value))
        else:
            lines.append(f"{key}: {json.dumps(value, ensure_ascii=False)}")
    return lines
