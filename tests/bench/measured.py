"""What the benchmark finds: rows of figures, and goals that are met or missed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests import raw

__all__ = ["Case", "Goal", "Row"]


@dataclass(frozen=True)
class Case:
    """A pair of checkpoints to measure."""

    name: str
    base: Path
    post: Path

    @cached_property
    def dtype(self) -> str:
        """The dtype that holds most of post's bytes."""
        sizes: dict[str, int] = {}
        for tensor in raw.read(self.post).values():
            sizes[tensor.spec.dtype] = sizes.get(tensor.spec.dtype, 0) + tensor.data.nbytes
        return max(sizes, key=lambda dtype: sizes[dtype])


@dataclass(frozen=True)
class Row:
    """What one subject does on one case.

    `size` is in bytes with everything counted, `bits` the same for each parameter of post; `pack` and `unpack` are
    10^9 bytes of post's tensors a second; `seconds` are wall time, `memory` is peak resident bytes; `error` is
    ‖Δ − Δ̂‖ / ‖Δ‖ of what is not exact. `p50`, `p95` and `p99` are seconds that so many of a
    hundred requests took at most.
    """

    case: str
    subject: str
    size: float | None = None
    bits: float | None = None
    pack: float | None = None
    unpack: float | None = None
    seconds: float | None = None
    memory: int | None = None
    error: float | None = None
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


@dataclass(frozen=True)
class Goal:
    """A figure that the product has to reach: what was measured, and how it came out."""

    case: str
    goal: str
    measured: str
    met: bool
