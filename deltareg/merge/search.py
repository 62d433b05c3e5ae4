"""Finding the k-th largest magnitude of a delta without sorting: from counts of 16 bits at a time.

A magnitude of 16 bits is found in one pass, one of 32 in two. Of lanes that have it, those with the lowest indices
count as larger. The counts are kept apart for up to 64 runs of blocks, so that only the run in which these ties run out
has to be seen once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from deltareg.codec import Array
from deltareg.merge.values import Extent, Values

__all__ = ["Counts", "Cut", "Ranks", "Search", "bounds", "drop_largest", "keep_largest", "new_counts", "splits"]

_RUNS = 64
_BINS = 1 << 16


@dataclass(frozen=True)
class Cut:
    """Where the k largest magnitudes of an extent end.

    They are those above `magnitude`, and of those equal to it all in the blocks before `block` and the `first` ones in
    it.
    """

    magnitude: int
    block: int
    first: int


_ALL = Cut(0, 1 << 62, 0)
_NONE = Cut(1 << 64, 0, 0)  # no magnitude is so large


@dataclass(frozen=True)
class _Sought:
    """What is known of one cut: its magnitude's highest bits, and how many lanes with just these are within it.

    `run` is set once the magnitude is known, and the blocks in which its ties run out are not: how many are within the
    cut among those of the run.
    """

    prefix: int
    left: int
    cut: Cut | None = None
    run: range | None = None


Ranks = Sequence[Sequence[_Sought]]
"""The cuts that are sought, for each delta the same number of them."""


class Search:
    """The search for cuts at given numbers of lanes, in `passes` passes over all blocks of an extent.

    `counts` has them for each delta, the same number of them.
    """

    def __init__(self, extent: Extent, counts: Sequence[Sequence[int]]) -> None:
        self._extent = extent
        self._start = [[self._begin(count) for count in row] for row in counts]
        self._levels = [4 if kind is None else -(-8 * kind.width // 16) for kind in extent.kinds]

    @property
    def passes(self) -> int:
        """How often blocks are seen."""
        return max(self._levels) + (self._extent.blocks > _RUNS)

    def known(self, settled: Sequence[Ranks]) -> Ranks:
        """What is known after the passes that `settled` comes from."""
        return settled[-1] if settled else self._start

    def gathering(self, number: int, settled: Sequence[Ranks]) -> Counts:
        """What gathers pass `number`."""
        return Counts(number, self.known(settled), self._levels, self._extent.blocks)

    def window(self, number: int, settled: Sequence[Ranks], delta: int) -> tuple[int, int] | None:
        """The bits that pass `number` counts of a delta, and those above them that the first cut's magnitude has.

        They are counted from bit `shift` on. None where a cut is known, or ties are counted.
        """
        sought = self.known(settled)[delta][0]
        if sought.cut is not None or sought.run is not None:
            return None
        return self._shift(number, delta), sought.prefix

    def wants(self, settled: Sequence[Ranks], position: int) -> bool:
        """Whether the next pass must see the block at `position`."""
        return any(
            sought.cut is None and (sought.run is None or position in sought.run)
            for row in self.known(settled)
            for sought in row
        )

    def measure(self, number: int, settled: Sequence[Ranks], values: Values) -> list[list[Array | int | None]]:
        """What pass `number` finds in one block: counts of 16 bits of the magnitudes, or of ties."""
        found: list[list[Array | int | None]] = []
        for delta, row in enumerate(self.known(settled)):
            symbols, mask = values.magnitudes(delta, self._extent.kinds[delta])
            found.append([self._count(values.loops, sought, number, delta, symbols, mask) for sought in row])
        return found

    def _begin(self, count: int) -> _Sought:
        if count <= 0:
            return _Sought(0, 0, _NONE)
        return _Sought(0, 0, _ALL) if count >= self._extent.lanes else _Sought(0, count)

    def _shift(self, number: int, delta: int) -> int:
        """From which bit on pass `number` counts magnitudes."""
        return 16 * (self._levels[delta] - 1 - number)

    def _count(
        self, loops: Any, sought: _Sought, number: int, delta: int, symbols: Any, mask: Any
    ) -> Array | int | None:
        if sought.cut is not None:
            return None
        if sought.run is not None:
            return int(loops.count_magnitude(symbols, mask, type(mask)(sought.prefix)))
        counts = new_counts()
        shift = np.uint64(self._shift(number, delta))
        loops.magnitude_counts(symbols, mask, shift, np.uint64(sought.prefix), counts)
        return counts


class Counts:
    """Gathers the counts of one pass."""

    def __init__(self, number: int, known: Ranks, levels: Sequence[int], blocks: int) -> None:
        self._number = number
        self._known = known
        self._levels = levels
        self._blocks = blocks
        self._length = -(-blocks // _RUNS)
        self._runs: dict[tuple[int, int], list[Array | None]] = {}
        self._ties: dict[tuple[int, int], dict[int, int]] = {}

    def add(self, position: int, found: Sequence[Sequence[Array | int | None]]) -> None:
        """Take the counts of the block at `position`."""
        for delta, row in enumerate(found):
            for rank, counts in enumerate(row):
                if isinstance(counts, int):
                    self._ties.setdefault((delta, rank), {})[position] = counts
                elif counts is not None:
                    self._add((delta, rank), position // self._length, counts)

    def merge(self, other: Counts) -> None:
        """Take the counts of other blocks."""
        for place, ties in other._ties.items():
            self._ties.setdefault(place, {}).update(ties)
        for place, runs in other._runs.items():
            for run, counts in enumerate(runs):
                if counts is not None:
                    self._add(place, run, counts)

    def _add(self, place: tuple[int, int], run: int, counts: Array) -> None:
        runs = self._runs.setdefault(place, [None] * -(-self._blocks // self._length))
        before = runs[run]
        # Of runs of one block no sum is needed; longer ones may have more lanes than 32 bits can count.
        runs[run] = counts if before is None else counts + before.astype(np.uint64)

    def settle(self) -> list[list[_Sought]]:
        """What is known now."""
        return [
            [self._narrowed(sought, delta, rank) for rank, sought in enumerate(row)]
            for delta, row in enumerate(self._known)
        ]

    def settle_for(self, count: int) -> list[list[_Sought]]:
        """As `settle`, where it is known only now that `count` lanes are sought."""
        self._known = [[_Sought(0, count) if count else _Sought(0, 0, _NONE) for _ in row] for row in self._known]
        return self.settle()

    def _narrowed(self, sought: _Sought, delta: int, rank: int) -> _Sought:
        if sought.cut is not None:
            return sought
        if sought.run is not None:
            ties = self._ties[delta, rank]
            block, first = _ends([ties[block] for block in sought.run], sought.left)
            return _Sought(sought.prefix, 0, Cut(sought.prefix, sought.run[block], first))
        runs = self._runs[delta, rank]
        total = np.zeros(_BINS, np.uint64)
        for counts in runs:
            if counts is not None:
                total += counts
        above = np.cumsum(total[::-1])[::-1]  # lanes in each bin and all higher ones
        if int(above[0]) < sought.left:  # the rest are in tensors that no delta changes, and that nobody counts
            return _Sought(0, 0, _ALL)
        place = int(np.flatnonzero(above >= sought.left)[-1])
        left = sought.left - (int(above[place + 1]) if place + 1 < _BINS else 0)
        prefix = sought.prefix << 16 | place
        if self._number + 1 < self._levels[delta]:
            return _Sought(prefix, left)
        run, rest = _ends([0 if counts is None else int(counts[place]) for counts in runs], left)
        blocks = range(run * self._length, min((run + 1) * self._length, self._blocks))
        if len(blocks) == 1:
            return _Sought(prefix, 0, Cut(prefix, blocks[0], rest))
        return _Sought(prefix, rest, None, blocks)


def _ends(counts: Sequence[int], wanted: int) -> tuple[int, int]:
    """In which of these parts the first `wanted` end, and how many of them are in it."""
    for part, count in enumerate(counts):
        if wanted <= count:
            return part, wanted
        wanted -= count
    raise AssertionError("fewer lanes were counted than there are")


def new_counts() -> Array:
    """Counts of 16 bits, all zero."""
    return np.zeros(_BINS, np.uint32)


def bounds(cut: Cut, position: int) -> tuple[int, int]:
    """The least magnitude that is within a cut in the block at `position`, and how many lanes with just that are.

    That is negative where all of them are.
    """
    if position == cut.block and cut.first > 0:
        return cut.magnitude, cut.first
    # Ties before the block where they run out are within the cut, those after it are not.
    return cut.magnitude + (position >= cut.block), -1


def splits(ranks: Ranks, position: int) -> bool:
    """Whether a cut goes through the block at `position`, whose lanes then have to be seen together."""
    return any(one.cut is not None and one.cut.block == position and one.cut.first > 0 for row in ranks for one in row)


def keep_largest(values: Values, row: Any, symbols: Any, mask: Any, cut: Cut, position: int) -> None:
    """Zero the values of `row` that are not within `cut`, in the block at `position`."""
    _select(values, row, symbols, mask, cut, position, inside=True)


def drop_largest(values: Values, row: Any, symbols: Any, mask: Any, cut: Cut, position: int) -> None:
    """Zero the values of `row` that are within `cut`, in the block at `position`."""
    _select(values, row, symbols, mask, cut, position, inside=False)


def _select(values: Values, row: Any, symbols: Any, mask: Any, cut: Cut, position: int, *, inside: bool) -> None:
    bits = cast("Any", type(mask))
    zero, loops = values.number(0), values.loops
    least, ties = bounds(cut, position)
    if inside:
        loops.keep_at_least(row, symbols, mask, bits(min(least, int(mask) + 1)), zero)
    else:
        loops.keep_below(row, symbols, mask, bits(min(least + (ties >= 0), int(mask) + 1)), zero)
    if ties >= 0:
        loops.settle_ties(row, symbols, mask, bits(cut.magnitude), ties, inside, zero)
