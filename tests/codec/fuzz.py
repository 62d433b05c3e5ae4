"""Damage at random: records with edited bytes, and records whose streams are unpacked, edited and packed again.

    python -m tests.codec.fuzz --seed 1 --rounds 1000

reads each of them and applies what is read. Anything but a result or a DeltaregError ends it with a traceback; with
NUMBA_BOUNDSCHECK=1 in the environment that includes every index out of bounds.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltareg.codec import FRAME_LANES, RecordHead, choose, decode_frame, kernels, lane_of
from deltareg.codec.frame import FRAME_HEAD
from deltareg.codec.memory import frame_memory
from deltareg.codec.mend import Mending, Overwrites
from deltareg.codec.record import Mode
from deltareg.codec.streams import StreamReader, pack_number
from deltareg.errors import DeltaregError
from tests.codec.samples import SAMPLES
from tests.codec.tensors import Raw, Record, encode, of, produced, recoded, records

__all__ = ["main"]

Array = NDArray[Any]
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)
_NUMBERS = (0, 1, 39, 40, 41, 254, 255, 256, 65535, 65536, FRAME_LANES, 2**31 - 1, 2**32 - 1, 2**63, 2**64 - 1)


@dataclass(frozen=True)
class Sized:
    """Bytes after a number that says how many they are."""

    says: int
    bytes: Array


Item = bytes | int | Array | Sized
"""What a body is made of: a byte, a number, a stream, bytes after their number."""


class Recording(StreamReader):
    """Notes what is read, so that it can be written again in another way."""

    def __init__(self, body: memoryview) -> None:
        super().__init__(body)
        self.items: list[Item] = []
        self._within = False

    def byte(self) -> int:
        """The next byte."""
        return self._note(super().byte, bytes)

    def number(self) -> int:
        """The next number."""
        return self._note(super().number, int)

    def plain(self, size: int) -> Array:
        """The next bytes, and the number before them."""
        taken = super().plain(size)
        if not self._within:
            assert self.items.pop() == size
            self.items.append(Sized(size, taken.copy()))
        return taken

    def stream(self, **lengths: int | None) -> Array:
        """The next stream."""
        return self._note(lambda: super(Recording, self).stream(**lengths), np.copy)

    def _note(self, read: Any, kept: Any) -> Any:
        if self._within:
            return read()
        self._within = True
        try:
            value = read()
        finally:
            self._within = False
        self.items.append(bytes((value,)) if kept is bytes else kept(value))
        return value


def recorded(data: bytes, lanes: int, base: str | None, dtype: str) -> list[Item]:
    """The items of a frame's body, in order."""
    head = RecordHead.of(base, dtype, ())
    kind, flags, _ = FRAME_HEAD.unpack_from(data)
    reader = Recording(memoryview(data)[FRAME_HEAD.size :])
    choose.decode_symbols(reader, kind, lanes, head.post)
    if flags & 1:
        Mending.decode(reader, lanes, head.post)
    if flags & 2 and head.base is not None:
        Overwrites.decode(reader, lanes, head.base, head.post)
    reader.close()
    return reader.items


def written(items: list[Item]) -> bytes:
    """Items as a body whose streams are raw."""
    parts: list[bytes] = []
    for item in items:
        if isinstance(item, bytes):
            parts.append(item)
        elif isinstance(item, int):
            parts.append(pack_number(item))
        elif isinstance(item, Sized):
            parts.append(pack_number(item.says) + item.bytes.tobytes())
        else:
            parts.append(b"\0" + pack_number(item.size) + item.tobytes())
    return b"".join(parts)


def framed(kind: int, flags: int, body: bytes) -> bytes:
    """A frame whose length is right."""
    return FRAME_HEAD.pack(kind, flags, len(body)) + body


def edited_bytes(data: bytes, draw: random.Random) -> bytes:
    """Bytes with bits flipped, set to extremes, cut, doubled, inserted."""
    damaged = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(damaged) or 1)
        what = draw.randrange(6)
        if what == 0 and damaged:
            damaged[at] ^= 1 << draw.randrange(8)
        elif what == 1 and damaged:
            damaged[at] = draw.choice(_EXTREMES)
        elif what == 2:
            damaged[at : at + draw.randint(1, 9)] = b""
        elif what == 3:
            damaged[at:at] = damaged[at : at + draw.randint(1, 30)]
        elif what == 4:
            damaged[at : at + 4] = draw.choice((b"\xff" * 4, bytes(4), b"\0\0\0\x80", b"\xff\xff\xff\x7f"))
        else:
            damaged[at:at] = pack_number(draw.choice(_NUMBERS))
    return bytes(damaged)


def edited_items(items: list[Item], draw: random.Random) -> list[Item]:
    """The same items, one or a few of them with other contents."""
    changed = list(items)
    for _ in range(draw.randint(1, 3)):
        if not changed:
            break
        at = draw.randrange(len(changed))
        item = changed[at]
        if isinstance(item, bytes):
            changed[at] = bytes((draw.choice([*_EXTREMES, 2, 3, 15, 16, item[0] ^ 1]),))
        elif isinstance(item, int):
            changed[at] = draw.choice([*_NUMBERS, max(0, item - 1), item + 1])
        elif isinstance(item, Sized):
            array = edited_array(item.bytes, draw)
            changed[at] = Sized(array.size if draw.randrange(4) else draw.choice(_NUMBERS), array)
        else:
            changed[at] = edited_array(item, draw)
    return changed


def edited_array(array: Array, draw: random.Random) -> Array:
    """The same bytes, some of them others, and now and then fewer or more of them."""
    edited = array.copy()
    for _ in range(draw.randint(1, 5) if array.size else 0):
        edited[draw.randrange(array.size)] = draw.choice([*_EXTREMES, draw.randrange(256)])
    what = draw.randrange(8)
    if what < 2:
        edited = edited[: draw.randrange(array.size + 1)]
    elif what == 2:
        edited = np.append(edited, np.frombuffer(draw.randbytes(draw.randint(1, 40)), np.uint8))
    return edited


class Run:
    """Feeds damage to the reader and counts what becomes of it."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.outcomes: Counter[str] = Counter()

    def try_record(self, record: Record, base: Raw | None, data: bytes) -> None:
        """Read and apply `data` in the place of a record."""
        try:
            record.produced(base, data)
        except DeltaregError as error:
            self.outcomes["refused: " + type(error).__name__] += 1
        else:
            self.outcomes["read"] += 1

    def try_frame(self, name: str, data: bytes, size: int) -> None:
        """Read a frame in the memory that is kept from frame to frame, and apply it."""
        sample = SAMPLES[name]
        head = RecordHead.of(sample.base_dtype, sample.dtype, ())
        with frame_memory():
            try:
                base = head.base if head.mode is Mode.ADD else None
                frame = decode_frame(memoryview(bytearray(data)), size, base, head.post)
                target = None
                if sample.base_dtype is not None:
                    target = np.resize(sample.make(size)[1], size).astype(lane_of(sample.base_dtype).bits)
                produced(frame, sample.base_dtype, sample.dtype, target)
            except DeltaregError as error:
                self.outcomes["refused: " + type(error).__name__] += 1
            else:
                self.outcomes["read"] += 1

    def records(self, rounds: int) -> None:
        """Whole records of a few hundred lanes."""
        pairs = {name: sample.make(612) for name, sample in SAMPLES.items()}
        base = {
            name: of(SAMPLES[name].base_dtype or "", pair[0]) for name, pair in pairs.items() if pair[0] is not None
        }
        post = {name: of(SAMPLES[name].dtype, pair[1]) for name, pair in pairs.items()}
        with tempfile.TemporaryDirectory() as path:
            found, _ = records(Path(path) / "pair", base, post)
        for name, record in found.items():
            assert record.produced(base.get(name)) == post[name].data, name
            for _ in range(rounds):
                self.try_record(record, base.get(name), edited_bytes(record.data, self.draw))

    def frames(self, rounds: int) -> None:
        """Frames with edited bytes, and frames whose streams are unpacked, edited and packed again."""
        for name, sample in SAMPLES.items():
            for size in (1, 40, 331):
                base, post = sample.make(size)
                data = encode(sample.base_dtype, sample.dtype, base, post).data
                # So small a frame is not stored in all the ways in which larger ones are.
                for each in [data, *recoded(data, size, sample.base_dtype, sample.dtype).values()]:
                    kind, flags, _ = FRAME_HEAD.unpack_from(each)
                    items = recorded(each, size, sample.base_dtype, sample.dtype)
                    self.try_frame(name, framed(kind, flags, written(items)), size)
                    for _ in range(rounds):
                        self.try_frame(name, framed(kind, flags, written(edited_items(items, self.draw))), size)
                        body = edited_bytes(each[FRAME_HEAD.size :], self.draw)
                        self.try_frame(name, framed(kind, flags, body), size)


def prove_checks() -> None:
    """Raise unless a loop that leaves its array is caught."""
    try:
        kernels.widen_all(np.zeros(1, np.uint16), np.zeros(2, np.float64))
    except IndexError:
        return
    raise RuntimeError("the compiled loops do not check their bounds")


def main(arguments: list[str] | None = None) -> int:
    """Run it and say what became of the damage."""
    parser = argparse.ArgumentParser(prog="python -m tests.codec.fuzz", description="damage records at random")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1000, help="edits of each sample")
    options = parser.parse_args(arguments)
    if os.environ.get("NUMBA_BOUNDSCHECK") == "1":
        prove_checks()
    run = Run(options.seed)
    run.records(options.rounds)
    run.frames(options.rounds)
    for outcome, count in sorted(run.outcomes.items()):
        print(f"{outcome}: {count}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
