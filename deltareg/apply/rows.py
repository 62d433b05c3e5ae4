"""Rows of an embedding that stand in another order, or in another number, in delta and target."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from deltareg.codec import FRAME_LANES, Array, Frame, Lane, RecordReader
from deltareg.codec.memory import empty
from deltareg.codec.mend import Mending, Overwrites

__all__ = ["Rows", "gather"]


@dataclass(frozen=True)
class Rows:
    """Which row of a delta's tensor belongs to which row of the target's.

    Row r belongs to row r, but for those that `moved` names: there the key is the target's row and the value the
    delta's, or −1 for none. Rows that only one side has belong to none.
    """

    delta: int
    target: int
    moved: Mapping[int, int]

    @cached_property
    def sources(self) -> Array:
        """(target,) int64: the delta's row for each of the target's, −1 for none."""
        found = np.arange(self.target, dtype=np.int64)
        for row, home in self.moved.items():
            if row < self.target:
                found[row] = home
        found[found >= self.delta] = -1
        return found


def gather(reader: RecordReader, rows: Rows, number: int, lanes: int) -> Frame:
    """The delta of frame `number`, of `lanes` lanes, of the target's tensor, from the frames that hold its rows.

    Holds one of these at a time. Raises BadRecord, UnsupportedFormat.
    """
    symbols: Array | None = None
    mendings: list[tuple[Array, Array]] = []
    overwrites: list[tuple[Array, Array, Array]] = []
    for source, stretches in _stretches(reader.head.lanes // rows.delta, rows.sources, number, lanes).items():
        frame = reader.read(source)
        if frame.symbols is not None and symbols is None:
            symbols = _unchanged(lanes, reader.head.delta)
        for to, start, length in stretches:
            if frame.symbols is not None and symbols is not None:
                _copy(frame, symbols, to, start, length)
            if frame.mending is not None:
                within = _within(frame.mending.positions, start, length)
                mendings.append((frame.mending.positions[within] + (to - start), frame.mending.codes[within]))
            if frame.overwrites is not None:
                found = frame.overwrites
                within = _within(found.positions, start, length)
                overwrites.append((found.positions[within] + (to - start), found.base[within], found.post[within]))
    return Frame(lanes, symbols, None, _mending(mendings), _overwrites(overwrites))


def _stretches(width: int, sources: Array, number: int, lanes: int) -> dict[int, list[tuple[int, int, int]]]:
    """By number of a source frame: where a stretch of lanes goes, where it starts in that frame, and its length."""
    begin = number * FRAME_LANES
    end = begin + lanes
    first = begin // width
    rows = sources[first : -(-end // width)]
    # A stretch of rows that follow one another on both sides is one.
    breaks = np.flatnonzero((np.diff(rows) != 1) | (rows[1:] < 0) | (rows[:-1] < 0)) + 1
    bounds = [0, *breaks.tolist(), rows.size]
    found: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for start, stop in pairwise(bounds):
        if start == stop or rows[start] < 0:
            continue
        lane = max(begin, (first + start) * width)
        last = min(end, (first + stop) * width)
        shift = (int(rows[start]) - first - start) * width
        while lane < last:
            source = (lane + shift) // FRAME_LANES
            until = min(last, (source + 1) * FRAME_LANES - shift)
            found[source].append((lane - begin, lane + shift - source * FRAME_LANES, until - lane))
            lane = until
    return dict(sorted(found.items()))


def _unchanged(lanes: int, lane: Lane) -> Array:
    symbols = empty(lanes, lane.bits)
    symbols.fill(lane.marker)
    return symbols


def _copy(frame: Frame, symbols: Array, to: int, start: int, length: int) -> None:
    if frame.symbols is None:
        return
    if frame.positions is None:
        symbols[to : to + length] = frame.symbols[start : start + length]
    else:
        within = _within(frame.positions, start, length)
        symbols[frame.positions[within] + (to - start)] = frame.symbols[within]


def _within(positions: Array, start: int, length: int) -> slice:
    first, last = np.searchsorted(positions, (start, start + length)).tolist()
    return slice(first, last)


def _mending(parts: list[tuple[Array, Array]]) -> Mending | None:
    return Mending(*_ascending(parts)) if any(part[0].size for part in parts) else None


def _overwrites(parts: list[tuple[Array, Array, Array]]) -> Overwrites | None:
    return Overwrites(*_ascending(parts)) if any(part[0].size for part in parts) else None


def _ascending(parts: Iterable[tuple[Array, ...]]) -> list[Array]:
    joined = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
    order = np.argsort(joined[0], kind="stable")
    return [column[order] for column in joined]
