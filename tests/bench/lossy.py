"""What each lossy tier takes, and what it loses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import deltareg
from deltareg import Registry
from tests.bench.measured import Case, Row

__all__ = ["measure_lossy"]

_CODECS = ("exact", "fp16", "bf16", "int8", "int4", "bit1", "rank:16", "rank:64", "topk:5%", "topk:20%")


def measure_lossy(case: Case, scratch: Path) -> Iterator[Row]:
    """The delta of a pair by every codec: its size with everything counted, and its relative error."""
    registry = Registry(scratch / "home")
    for number, codec in enumerate(_CODECS):
        report = deltareg.diff(case.base, case.post, registry, f"bench/lossy:{number}.0.0", codec=codec)
        yield Row(
            case.name,
            f"--codec {codec}",
            size=report.artifact_size,
            bits=report.bits_per_parameter,
            seconds=report.seconds,
            error=report.relative_error,
        )
