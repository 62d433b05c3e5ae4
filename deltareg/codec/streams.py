"""Byte streams within a frame: each raw, constant, or one zstd frame, whichever is smallest."""

from __future__ import annotations

import threading
from enum import IntEnum

import numpy as np
import zstandard

from deltareg.codec.lanes import Array, view_of
from deltareg.codec.memory import empty
from deltareg.errors import BadRecord
from deltareg.manifest import Preset

__all__ = ["Preset", "StreamReader", "compress", "pack_number", "pack_stream"]

_WINDOW_LOG = 21
# Bytes up to which a stream is decompressed in one call, which is the quicker way where it takes little memory.
_SHORT = 1 << 16


class _Coding(IntEnum):
    RAW = 0
    ZSTD = 1
    CONSTANT = 2


# Tokens and planes hold almost no repetitions: what shrinks them is zstd's Huffman stage. `fast` therefore looks for
# matches of 7 bytes and more only, with a table of 1,024 entries: the size of level 1, the time of it where symbols are
# many, and a third of it where they are few. `small` looks for every repetition that there is.
_PARAMETERS: dict[str, zstandard.ZstdCompressionParameters] = {
    "fast": zstandard.ZstdCompressionParameters(
        window_log=_WINDOW_LOG,
        hash_log=10,
        chain_log=6,
        search_log=1,
        min_match=7,
        target_length=0,
        strategy=zstandard.STRATEGY_FAST,
        write_content_size=1,
        write_checksum=0,
        write_dict_id=0,
    ),
    "small": zstandard.ZstdCompressionParameters.from_level(  # pyright: ignore[reportUnknownMemberType]
        12, window_log=_WINDOW_LOG, write_content_size=1, write_checksum=0, write_dict_id=0
    ),
}
_contexts = threading.local()


def compress(data: Array, preset: Preset) -> bytes:
    """`data` as one zstd frame with its content size."""
    context = getattr(_contexts, preset, None)
    if context is None:
        context = zstandard.ZstdCompressor(compression_params=_PARAMETERS[preset])
        setattr(_contexts, preset, context)
    return context.compress(view_of(data))


def pack_number(number: int) -> bytes:
    """A number below 2**64 in base 128, low digit first, the high bit set on all digits but the last (LEB128)."""
    digits = bytearray()
    while number >= 128:
        digits.append(number & 127 | 128)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def pack_stream(data: Array | bytes, preset: Preset) -> bytes:
    """`data` (uint8 or bytes) as a stream: coding u8, decoded length, and then

    raw: the bytes; constant: the one byte that all of them are; zstd: stored length and one zstd frame.
    """
    raw = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
    length = pack_number(raw.size)
    if raw.size > 1 and raw[0] == raw[-1] and not np.any(raw != raw[0]):
        return bytes((_Coding.CONSTANT,)) + length + raw[:1].tobytes()
    packed = compress(raw, preset) if raw.size else b""
    if preset == "small" and raw.size:
        # A search for repetitions can find short ones that cost more than what they replace.
        packed = min(packed, compress(raw, "fast"), key=len)
    stored = pack_number(len(packed))
    if raw.size and len(stored) + len(packed) < raw.size:
        return bytes((_Coding.ZSTD,)) + length + stored + packed
    return bytes((_Coding.RAW,)) + length + raw.tobytes()


class StreamReader:
    """Reads the streams of one frame's body, in order, and trusts none of their lengths.

    Raises BadRecord, whose message the caller completes with file and tensor.
    """

    def __init__(self, body: memoryview) -> None:
        self._body = body
        self._at = 0

    @property
    def position(self) -> int:
        """Bytes that were read."""
        return self._at

    def byte(self) -> int:
        """The next byte."""
        return self._take(1)[0]

    def number(self) -> int:
        """The next number, as `pack_number` writes it."""
        number = 0
        for shift in range(0, 64, 7):
            digit = self.byte()
            number |= (digit & 127) << shift
            if digit < 128:
                return number
        raise BadRecord("a number has more than ten digits")

    def plain(self, size: int) -> Array:
        """The next `size` bytes as uint8: a copy, since compiled loops take aligned memory that may be written."""
        data = self._take(size)  # before memory is taken for it
        taken = empty(size, np.uint8)
        taken[:] = np.frombuffer(data, np.uint8)
        return taken

    def stream(self, *, size: int | None = None, limit: int | None = None) -> Array:
        """The next stream as uint8, of exactly `size` bytes or of at most `limit`."""
        coding = self.byte()
        decoded = self.number()
        if size is not None and decoded != size:
            raise BadRecord(f"a stream says it holds {decoded} bytes where {size} are needed")
        if limit is not None and decoded > limit:
            raise BadRecord(f"a stream says it holds {decoded} bytes where at most {limit} are possible")
        if coding == _Coding.RAW:
            return self.plain(decoded)
        if coding == _Coding.CONSTANT:
            constant = empty(decoded, np.uint8)
            constant.fill(self.byte())
            return constant
        if coding == _Coding.ZSTD:
            return _decompress(self._take(self.number()), decoded)
        raise BadRecord(f"unknown stream coding {coding}")

    def close(self) -> None:
        """The body must end here."""
        if self._at != len(self._body):
            raise BadRecord(f"{len(self._body) - self._at} bytes are left over at the end of a frame")

    def _take(self, size: int) -> memoryview:
        end = self._at + size
        if end > len(self._body):
            raise BadRecord("a frame ends in the middle of a stream")
        taken = self._body[self._at : end]
        self._at = end
        return taken


def _decompress(data: memoryview, size: int) -> Array:
    # The content size is checked before memory is taken for it.
    try:
        if zstandard.frame_content_size(data) != size:
            raise BadRecord(f"a zstd frame decodes to another size than the {size} bytes that its stream says")
        out = empty(size, np.uint8)
        context = getattr(_contexts, "decompress", None)
        if context is None:
            context = _contexts.decompress = zstandard.ZstdDecompressor(max_window_size=1 << (_WINDOW_LOG + 2))
        if 0 < size <= _SHORT:  # python-zstandard looks at nothing behind the head of an empty frame
            out[:] = np.frombuffer(context.decompress(data, max_output_size=size, allow_extra_data=False), np.uint8)
            return out
        # Into memory of ours: python-zstandard would ask the operating system for its own anew for each stream.
        if _frame_length(data) != len(data):
            raise BadRecord("something follows the zstd frame of a stream")
        with context.stream_reader(data, read_size=len(data)) as reader:
            got: int = reader.readinto(view_of(out))  # pyright: ignore[reportUnknownMemberType]
            rest = reader.read(1)
    except zstandard.ZstdError as error:
        raise BadRecord(f"a zstd frame is corrupt: {error}", cause=str(error)) from error
    if got != size or rest:
        raise BadRecord(f"a zstd frame does not decode to the {size} bytes that its stream says")
    return out


def _frame_length(data: memoryview) -> int:
    """Bytes of the zstd frame at the start of `data`, from the heads of its blocks (RFC 8878, 3.1.1)."""
    at = zstandard.frame_header_size(data)
    while True:
        head = int.from_bytes(data[at : at + 3], "little")
        run_length = (head >> 1) & 3 == 1
        at += 3 + (1 if run_length else head >> 3)
        if head & 1 or at >= len(data):
            return at + (4 if zstandard.get_frame_parameters(data).has_checksum else 0)
