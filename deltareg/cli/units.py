"""Numbers as people read them. JSON has the exact ones."""

from __future__ import annotations

import math
import re

from deltareg.errors import InvalidArgument

__all__ = ["counted", "duration", "number", "parse_duration", "parse_size", "ratio", "shape", "size", "speed"]

_SIZES = ("KiB", "MiB", "GiB", "TiB", "PiB")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)\s?([KMGTP]?)(?:iB|B)?", re.ASCII | re.IGNORECASE)
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", re.ASCII)


def size(count: int) -> str:
    """Bytes in binary units: `1.50 MiB`."""
    if count < 1024:
        return f"{count} B"
    power = min(int(math.log2(count)) // 10, len(_SIZES))
    return f"{count / 1024**power:.4g} {_SIZES[power - 1]}"


def speed(count: int, seconds: float) -> str:
    """Bytes a second in decimal units, as disks and networks are rated."""
    rate = count / max(seconds, 1e-9)
    return f"{rate / 1e9:.2f} GB/s" if rate >= 1e9 else f"{rate / 1e6:.1f} MB/s"


def number(count: int) -> str:
    """A count with its thousands apart: `22,713,216`."""
    return f"{count:,}"


def counted(count: int, what: str) -> str:
    """A count of things: `1 name`, `2 names`."""
    return f"{number(count)} {what}{'' if count == 1 else 's'}"


def ratio(value: float) -> str:
    """A number of no unit, to four digits."""
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """A span of time: `0.42 s`, `3 min 20 s`."""
    if seconds < 100:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def shape(sides: list[int]) -> str:
    """A tensor's shape: `384×1536`; `scalar` for one of no dimension."""
    return "×".join(map(str, sides)) if sides else "scalar"


def parse_size(text: str) -> int:
    """Bytes of `2GiB`, `500M` or `1073741824`; units are powers of 1024. Raises InvalidArgument."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise InvalidArgument(f"{text!r} is no size", hint="write 2GiB, 500MiB or a number of bytes")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def parse_duration(text: str) -> int:
    """Seconds of `90s`, `30m`, `1h30m`, `2d` or plain `0`. Raises InvalidArgument."""
    found = _DURATION.fullmatch(text)
    if found is None or not text:
        raise InvalidArgument(f"{text!r} is no span of time", hint="write 90s, 30m, 1h30m or 2d")
    return sum(int(part) * unit for part, unit in zip(found.groups("0"), (86400, 3600, 60, 1), strict=True))
