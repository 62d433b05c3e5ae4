"""What stages do to a block of BF16 lanes, put off until all of it can be done in one pass.

A stage that can says here what it does and is done. Where one needs the numbers, they are made with all that was said
before it, and it goes on with these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deltareg.codec import Array, Lane, lane_of
from deltareg.codec.memory import empty
from deltareg.codec.mend import Mending
from deltareg.merge import chunks, loops

if TYPE_CHECKING:
    from deltareg.merge.stage import Stage

__all__ = ["ALIGNMENT", "Deferred", "can_defer"]

ALIGNMENT = 8192
"""What the first lane of a block is a multiple of: random bits come in runs of so many lanes."""

_MOST = 1 << 15
_WIDEST = 1 << 16
_LANE = lane_of("BF16")
_NO_PLACES = np.zeros(0, np.int64)
_NO_TERMS = np.zeros(0, np.float32)


def can_defer(lanes: Iterable[Lane], stages: Iterable[Stage], row: int) -> bool:
    """Whether stages can put off what they do to a tensor with rows of `row` lanes.

    `lanes` are those of the target, the output and the deltas.
    """
    by_row = any(stage.whole_rows for stage in stages)
    return (
        all(lane.dtype == "BF16" for lane in lanes)
        and all(stage.defers for stage in stages)
        and not (by_row and row > _WIDEST)
    )


@dataclass(frozen=True)
class _Sum:
    factors: Array


@dataclass(frozen=True)
class _Election:
    factors: Array
    votes: Array
    by_sign: bool
    shares: Array
    scale: Any


@dataclass
class Deferred:
    """What is done to the lanes of a block, in this order whichever came first:

    they are multiplied with factors; those are zeroed whose magnitudes are too small or too large, then those that
    chance drops, then those whose variance over the deltas is too small; then they are summed.

    Each method gives False where that order, or what was said before, does not allow it.

    `symbols` (uint16) are all lanes of each delta, `mendings` their second terms. `first`, a multiple of `ALIGNMENT`,
    is the block's first lane in the tensor, `row` the lanes in one of its rows.
    """

    symbols: tuple[Array, ...]
    mendings: Sequence[Mending | None]
    first: int
    row: int
    _weigh: Array | None = None
    _least: list[tuple[int, int]] | None = None
    _most: list[tuple[int, int]] | None = None
    _how: int = 0
    _keys: tuple[int, ...] = ()
    _limits: Sequence[int] = ()
    _ranks: Array | None = None
    _lines: Sequence[tuple[float, float]] = ()
    _spread: tuple[int, int] | None = None
    _last: _Sum | _Election | None = None

    @property
    def lanes(self) -> int:
        """Lanes of the block."""
        return self.symbols[0].size

    def multiply(self, factors: Array) -> bool:
        """Multiply each delta with its factor (float32)."""
        if self._weigh is not None or self._spread is not None:
            return False
        self._weigh = factors
        return True

    def keep_at_least(self, bounds: Sequence[tuple[int, int]]) -> bool:
        """Keep those lanes of each delta that have at least this magnitude; of those with just it the first so many.

        All of these where the second number is negative.
        """
        if self._least is not None or self._spread is not None:
            return False
        self._least = [(min(least, _MOST), ties) for least, ties in bounds]
        return True

    def keep_below(self, bounds: Sequence[tuple[int, int]]) -> bool:
        """Keep those lanes of each delta that are below this magnitude; of those with just it not the first so many.

        None of these where the second number is negative.
        """
        if self._most is not None or self._spread is not None:
            return False
        self._most = [(min(most, _MOST), ties) for most, ties in bounds]
        return True

    def drop(self, keys: tuple[int, ...], limits: Sequence[int]) -> bool:
        """Keep those lanes of each delta whose 32 random bits are below its limit."""
        if self._how or self._spread is not None:
            return False
        self._how, self._keys, self._limits = chunks.BY_CHANCE, keys, limits
        return True

    def drop_by_rank(self, keys: tuple[int, ...], lines: Sequence[tuple[float, float]], *, inverse: bool) -> bool:
        """Keep a lane with the chance top − step · its rank in its row, and divide it by that where `inverse`.

        `lines` has top and step of each delta.
        """
        if self._how or self._spread is not None:
            return False
        self._how = chunks.BY_RANK_INVERSE if inverse else chunks.BY_RANK
        self._keys, self._lines = keys, lines
        self._ranks = empty(len(self.symbols) * self.lanes, np.uint16).reshape(-1, self.lanes)
        for symbols, ranks in zip(self.symbols, self._ranks, strict=True):
            loops.rank_rows(symbols, np.uint16(_MOST - 1), 2, self.row, ranks)
        return True

    def select(self, least: int, ties: int) -> bool:
        """Keep lanes whose variance has at least these bits as a float32; of those with just these the first `ties`.

        All of these where that is negative.
        """
        if self._spread is not None:
            return False
        self._spread = min(least, 1 << 31), ties
        return True

    def sum(self, factors: Array) -> bool:
        """Let Σ factor · value (float32) be what is added to the target."""
        self._last = _Sum(factors)
        return True

    def elect(self, factors: Array, votes: Array, by_sign: bool, shares: Array, scale: Any) -> bool:
        """Let the values that have the elected sign be what is added to the target: see `loops.elect`."""
        self._last = _Election(factors, votes, by_sign, shares, scale)
        return True

    def values(self) -> Array:
        """What is left of the deltas, float32 of shape (deltas, lanes)."""
        values = empty(len(self.symbols) * self.lanes, np.float32).reshape(-1, self.lanes)
        chunks.fill(self._block(), values)
        return values

    def products(self, pairs: Sequence[tuple[int, int]]) -> list[float]:
        """The scalar products of these pairs of deltas: see `loops.dot`."""
        left, right = np.array(pairs, np.int64).T.copy()
        return chunks.products(self._block(), left, right).tolist()

    def count_spreads(self, shift: int, prefix: int, counts: Array) -> int:
        """Count the bits of the variances as `loops.magnitude_counts` does; returns how many are not zero."""
        return int(chunks.count_spreads(self._block(), np.uint32(shift), np.uint32(prefix), counts))

    def add_to(self, target: Array, out: Array) -> None:
        """out = round(target + what the last stage gave)."""
        last = self._last
        assert last is not None
        if isinstance(last, _Sum):
            chunks.add_sum(self._block(), last.factors, target, out)
        else:
            told = last.factors, last.votes, last.by_sign, last.shares, last.scale
            chunks.add_elected(self._block(), *told, target, out)

    def _terms(self) -> tuple[list[Array], list[Array]]:
        """Of each delta the lanes with second terms, and D1 + D2 there."""
        places: list[Array] = []
        terms: list[Array] = []
        for symbols, mending in zip(self.symbols, self.mendings, strict=True):
            if mending is not None:
                places.append(mending.positions)
                terms.append(mending.terms(symbols, _LANE, np.float32))
            else:
                places.append(_NO_PLACES)
                terms.append(_NO_TERMS)
        return places, terms

    def _block(self) -> Any:
        places, terms = self._terms()
        ranks = self.symbols if self._ranks is None else tuple(self._ranks)
        deltas = len(self.symbols)
        least = np.array(self._least or [(0, -1)] * deltas, np.int64)
        most = np.array(self._most or [(_MOST, -1)] * deltas, np.int64)
        lines = np.array(self._lines or [(0.0, 0.0)] * deltas, np.float64)
        spread, spread_ties = self._spread or (0, -1)
        return chunks.Lanes(
            self.first,
            self.lanes,
            _addresses(self.symbols),
            np.concatenate(places),
            np.concatenate(terms),
            np.cumsum([one.size for one in terms], dtype=np.int64),
            np.ones(deltas, np.float32) if self._weigh is None else self._weigh,
            np.ascontiguousarray(least[:, 0]),
            np.ascontiguousarray(least[:, 1]),
            np.ascontiguousarray(most[:, 0]),
            np.ascontiguousarray(most[:, 1]),
            self._how,
            np.array(self._keys or [0] * deltas, np.uint64),
            np.array(self._limits or [0] * deltas, np.int64),
            _addresses(ranks),
            np.ascontiguousarray(lines[:, 0]),
            np.ascontiguousarray(lines[:, 1]),
            spread,
            spread_ties,
        )


def _addresses(arrays: Sequence[Array]) -> Array:
    # The loops read there whatever it is.
    assert all(array.dtype == np.uint16 and array.flags.c_contiguous for array in arrays)
    return np.array([array.ctypes.data for array in arrays], np.uint64)
