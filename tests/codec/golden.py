"""The golden files: small records, and one small artifact, that every later version must read.

    python -m tests.codec.golden

writes them anew. That is for a new version of the format; records of the old one stay, under another name.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

import deltareg
from deltareg.codec import FRAME_LANES, Factors, LowRank, Preset, RecordHead, encode_given, lane_of
from tests.codec.oracle import FORMATS
from tests.codec.samples import SAMPLES
from tests.codec.tensors import DTYPES, Raw, of, records, write_checkpoint

__all__ = ["ARTIFACT", "DIRECTORY", "NAME", "PRESETS", "Golden", "cases", "load", "main"]

Array = NDArray[Any]
Pair = tuple[Raw | None, Raw]

DIRECTORY = Path(__file__).parent / "golden"
ARTIFACT = DIRECTORY / "artifact"
NAME = "acme/golden:1.0.0"
PRESETS: tuple[Preset, ...] = ("fast", "small")


@dataclass(frozen=True)
class Golden:
    """One file: a pair of tensors, base None where it lacks the tensor, and the record of each preset."""

    name: str
    base: Raw | None
    post: Raw
    records: Mapping[str, bytes]
    delta: Raw | None = None
    """D1, where it has a dtype of its own: such records are made from it, and post is what they give."""


def load() -> list[Golden]:
    """All golden records."""
    return [_read(path) for path in sorted(DIRECTORY.glob("*.json")) if path.name != "zstd.json"]


def _read(path: Path) -> Golden:
    document = json.loads(path.read_text())
    shape = tuple(document["shape"])
    base = None
    if document["baseDtype"] is not None:
        base = Raw(document["baseDtype"], shape, _expanded(document["base"]))
    post = Raw(document["postDtype"], shape, _expanded(document["post"]))
    delta = None
    if "deltaDtype" in document:
        delta = Raw(document["deltaDtype"], shape, _expanded(document["delta"]))
    records = {key: bytes.fromhex(value) for key, value in document["records"].items()}
    return Golden(path.stem, base, post, records, delta)


def _expanded(runs: list[tuple[int, str]]) -> bytes:
    return b"".join(bytes.fromhex(data) * times for times, data in runs)


# --- making them --------------------------------------------------------------------------------------------------


def cases() -> dict[str, Pair]:
    """The pairs, by the names of their files."""
    found: dict[str, Pair] = {}
    for name, sample in SAMPLES.items():
        if name != "zero":  # has no record
            size = 400 if lane_of(sample.dtype).width == 2 else 120
            if name in _LARGE:
                size = sample.size
            found[name.replace(" ", "-").lower()] = _pair(sample.base_dtype, sample.dtype, *sample.make(size))
    found |= {f"dtype-{dtype.lower()}": _any_bits(dtype) for dtype in DTYPES}
    found |= {name: make() for name, make in _SPECIAL.items()}
    return found


# An arithmetic code is smaller for fewer lanes of these.
_LARGE = ("palette of bytes", "palette of nibbles", "sparse")


def _pair(base_dtype: str | None, dtype: str, base: Array | None, post: Array) -> Pair:
    return None if base is None or base_dtype is None else of(base_dtype, base), of(dtype, post)


def _any_bits(dtype: str) -> Pair:
    """Random bits, a third of them unchanged: for floats a hard mixture of second terms and overwrites."""
    draw, lane = np.random.default_rng([DTYPES.index(dtype), 3]), lane_of(dtype)
    top = 2 if dtype == "BOOL" else 2 ** (8 * lane.width)
    base, post = (draw.integers(0, top, 48, lane.bits, endpoint=False) for _ in range(2))
    post[::3] = base[::3]
    return _pair(dtype, dtype, base, post)


def _odd_floats() -> Pair:
    """Zeros of both signs, subnormals, infinities, NaN: each to each."""
    odd = np.array(
        [0, 0x8000, 1, 0x8001, 0x007F, 0x0080, 0x3F80, 0xBF80, 0x7F7F, 0x7F80, 0xFF80, 0x7FC0, 0xFFC0, 0x7F81]
    )
    return _pair("BF16", "BF16", np.repeat(odd, odd.size).astype(np.uint16), np.tile(odd, odd.size).astype(np.uint16))


def _frames() -> Pair:
    """Three frames: the first unchanged, the second with one changed lane, the last of five lanes."""
    base = np.zeros(2 * FRAME_LANES + 5, np.uint8)
    post = base.copy()
    post[[FRAME_LANES + 7, 2 * FRAME_LANES, 2 * FRAME_LANES + 4]] = [1, 2, 3]
    return _pair("U8", "U8", base, post)


def _float_frames() -> Pair:
    base = np.full(FRAME_LANES + 3, 0x3F80, np.uint16)
    post = base.copy()
    post[[5, FRAME_LANES - 1, FRAME_LANES + 1]] = [0x3F81, 0x0001, 0xFFFF]
    return _pair("BF16", "BF16", base, post)


def _many_escapes() -> Pair:
    """Symbols that are all escaped but two, and a nibble over; lanes that are mended and overwritten."""
    draw, format_ = np.random.default_rng(8), FORMATS["BF16"]
    base = format_.narrow(np.ones(5001))
    post = np.where(draw.random(5001) < 0.9, 0x3F81, draw.integers(0, 0x8000, 5001)).astype(np.uint16)
    return _pair("BF16", "BF16", base, post)


def _shaped(pair: Pair, shape: tuple[int, ...]) -> Pair:
    base, post = pair
    return None if base is None else Raw(base.dtype, shape, base.data), Raw(post.dtype, shape, post.data)


def _one_lane() -> Pair:
    return _pair("F32", "F32", np.array([0x3F800000], np.uint32), np.array([0x3F800001], np.uint32))


_SPECIAL: Mapping[str, Callable[[], Pair]] = {
    "odd-floats": _odd_floats,
    "frames": _frames,
    "float-frames": _float_frames,
    "many-escapes": _many_escapes,
    "scalar": lambda: _shaped(_one_lane(), ()),
    "shape-of-ones": lambda: _shaped(_one_lane(), (1,) * 9),
    "added-empty": lambda: (None, Raw("F64", (3, 0), b"")),
    "added-scalar": lambda: (None, Raw("BOOL", (), b"\1")),
    "bf16-to-f16": lambda: _shaped(_between("BF16", "F16"), (5, 20)),
    "f16-to-f64": lambda: _between("F16", "F64"),
    "f64-to-f32": lambda: _between("F64", "F32"),
    "i64-to-f32": lambda: _pair("I64", "F32", np.zeros(9, np.uint64), FORMATS["F32"].narrow(np.arange(9.0))),
    "f4-to-bf16": lambda: (Raw("F4", (8,), b"abcd"), of("BF16", FORMATS["BF16"].narrow(np.arange(8.0)))),
}


def _between(base_dtype: str, dtype: str) -> Pair:
    draw = np.random.default_rng(9)
    values = draw.normal(0, 1, 100)
    moved = values * draw.choice([1, 1.003, -2, 1e-3], 100)
    return _pair(base_dtype, dtype, FORMATS[base_dtype].narrow(values), FORMATS[dtype].narrow(moved))


def given_cases() -> dict[str, tuple[Raw, Raw, Raw]]:
    """Base, delta and what they make, by the names of their files: deltas with a dtype of their own."""
    return {f"{delta}-on-{dtype}".lower(): _given(dtype, delta) for dtype, delta in _GIVEN}


_GIVEN = (("F32", "BF16"), ("BF16", "F32"), ("F64", "F16"), ("F16", "F64"), ("C64", "BF16"))


def _given(dtype: str, delta_dtype: str) -> tuple[Raw, Raw, Raw]:
    """Few levels, many zeros of either sign, and sums that must be rounded once."""
    draw, format_, held = np.random.default_rng(10), FORMATS[dtype.replace("C64", "F32")], FORMATS[delta_dtype]
    base = format_.narrow(draw.normal(0, 1, 400))
    delta = held.narrow(draw.choice([0.0, -0.0, 0.1, -0.1, 0.3, 1e-4], 400))
    wide = 4 if dtype in ("BF16", "F16") and delta_dtype in ("BF16", "F16") else 8
    added = (format_.widen(base).astype(f"f{wide}") + held.widen(delta).astype(f"f{wide}")).astype(np.float64)
    post = np.where(held.widen(delta) == 0, base, format_.narrow(added)).astype(base.dtype)
    shape = (200,) if dtype == "C64" else (20, 20)
    return of(dtype, base, shape), Raw(delta_dtype, shape, delta.tobytes()), of(dtype, post, shape)


def encoded_given(base: Raw, delta: Raw, post: Raw, preset: Preset) -> bytes:
    """The record of one frame that adds `delta`."""
    lane = lane_of(delta.dtype)
    head = RecordHead.of(base.dtype, post.dtype, post.shape, delta.dtype)
    return head.pack() + encode_given(np.frombuffer(delta.data, lane.stored), lane, preset).data


@dataclass(frozen=True)
class LowRankGolden:
    """One file of `low-rank/`: base, two factors and their scale, what they make of base, and the records."""

    name: str
    base: Raw
    left: Raw
    right: Raw
    scale: float
    post: Raw
    records: Mapping[str, bytes]
    rest: Raw | None = None
    """What is added to the product, where there is that."""


def load_low_rank() -> list[LowRankGolden]:
    """All golden records of factors."""
    return [_read_low_rank(path) for path in sorted((DIRECTORY / "low-rank").glob("*.json"))]


def _read_low_rank(path: Path) -> LowRankGolden:
    document = json.loads(path.read_text())
    tensors = {
        name: Raw(dtype, tuple(shape), bytes.fromhex(data))
        for name, (dtype, shape, data) in ((name, document[name]) for name in _LOW_RANK_TENSORS)
    }
    records = {key: bytes.fromhex(value) for key, value in document["records"].items()}
    rest = None
    if "rest" in document:
        rest = Raw(document["rest"][0], tuple(document["rest"][1]), bytes.fromhex(document["rest"][2]))
    return LowRankGolden(path.stem, scale=float.fromhex(document["scale"]), records=records, rest=rest, **tensors)


_LOW_RANK_TENSORS = ("base", "left", "right", "post")
# Dtypes of base, left and right factor; shape, rank and scale; the dtype of the rest.
_LOW_RANK = (
    ("F32", "F32", "F32", (7, 5), 3, 2.0, None),
    ("BF16", "F32", "F32", (6, 4, 2), 2, 1 / 3, None),
    ("BF16", "BF16", "BF16", (5, 9), 1, 0.5, None),
    ("F16", "F16", "BF16", (9, 4), 4, -1.0, None),
    ("F64", "F32", "F16", (4, 4), 4, 2**0.5, None),
    ("F32", "BF16", "BF16", (9, 7), 2, 1.0, "BF16"),
    ("BF16", "BF16", "F32", (6, 3, 3), 1, 0.5, "F64"),
)


def low_rank_cases() -> list[LowRankGolden]:
    """The golden records of factors, made here: sums in float64, one k after the other."""
    return [_low_rank(*case) for case in _LOW_RANK]


def _low_rank(
    dtype: str,
    left_dtype: str,
    right_dtype: str,
    shape: tuple[int, ...],
    rank: int,
    scale: float,
    rest_dtype: str | None,
) -> LowRankGolden:
    draw = np.random.default_rng(11)
    rows, columns = shape[0], int(np.prod(shape[1:]))
    left = FORMATS[left_dtype].narrow(draw.normal(0, 1, (rows, rank)))
    right = FORMATS[right_dtype].narrow(draw.normal(0, 1, (rank, columns)))
    left[1] = 0  # a row that does not change
    total = np.zeros((rows, columns))
    for k in range(rank):
        total = total + FORMATS[left_dtype].widen(left)[:, k : k + 1] * FORMATS[right_dtype].widen(right)[k]
    delta = (scale * total).astype(np.float32).astype(np.float64)
    rest = None
    if rest_dtype is not None:
        # Signs of one size, and some lanes that the product has alone.
        rest = FORMATS[rest_dtype].narrow(draw.choice([0.25, -0.25, 0.0], (rows, columns), p=[0.4, 0.4, 0.2]))
        delta = (delta + FORMATS[rest_dtype].widen(rest)).astype(np.float32).astype(np.float64)
    base = FORMATS[dtype].narrow(draw.normal(0, 1, rows * columns).reshape(rows, columns))
    base[1] = FORMATS[dtype].narrow(np.full(columns, -0.0))
    post = np.where(delta == 0, base, FORMATS[dtype].narrow(FORMATS[dtype].widen(base) + delta))
    case = LowRankGolden(
        f"{left_dtype}-{right_dtype}{'' if rest_dtype is None else f'-and-{rest_dtype}'}-on-{dtype}".lower(),
        of(dtype, base, shape),
        of(left_dtype, left, (rows, rank)),
        of(right_dtype, right, (rank, columns)),
        scale,
        of(dtype, post.astype(base.dtype), shape),
        {},
        None if rest is None or rest_dtype is None else of(rest_dtype, rest, shape),
    )
    return replace(case, records={preset: encoded_low_rank(case, preset) for preset in PRESETS})


def encoded_low_rank(case: LowRankGolden, preset: Preset) -> bytes:
    """The record of a case."""
    lane = None if case.rest is None else lane_of(case.rest.dtype)
    low_rank = LowRank(case.left.shape[1], lane_of(case.left.dtype), lane_of(case.right.dtype), case.scale, lane)
    bits = [np.frombuffer(one.data, lane_of(one.dtype).bits) for one in (case.left, case.right)]
    head = RecordHead.of_product(case.base.dtype, case.base.shape, low_rank)
    rest = b""
    if case.rest is not None and lane is not None:
        rest = encode_given(np.frombuffer(case.rest.data, lane.stored), lane, preset).data
    return head.pack() + b"".join(Factors(low_rank, bits[0], bits[1]).encode(preset)) + rest


def _write_low_rank() -> None:
    (DIRECTORY / "low-rank").mkdir(exist_ok=True)
    for case in low_rank_cases():
        tensors = {name: getattr(case, name) for name in _LOW_RANK_TENSORS}
        document = {
            **{name: [one.dtype, list(one.shape), one.data.hex()] for name, one in tensors.items()},
            "scale": case.scale.hex(),
            **({} if case.rest is None else {"rest": [case.rest.dtype, list(case.rest.shape), case.rest.data.hex()]}),
            "records": {preset: data.hex() for preset, data in case.records.items()},
        }
        (DIRECTORY / "low-rank" / f"{case.name}.json").write_text(json.dumps(document, indent=1) + "\n")


def _runs(data: bytes, width: int) -> list[tuple[int, str]]:
    """Bytes as [times, hexadecimal]: long repetitions of one lane folded, all else as it is."""
    lanes = [data[at : at + width] for at in range(0, len(data), width)]
    runs: list[tuple[int, str]] = []
    plain = b""
    for lane, times in _repeated(lanes):
        if times < 16:
            plain += lane * times
            continue
        runs += [(1, plain.hex())] if plain else []
        runs.append((times, lane.hex()))
        plain = b""
    return [*runs, (1, plain.hex())] if plain else runs


def _repeated(lanes: list[bytes]) -> Iterator[tuple[bytes, int]]:
    start = 0
    for at in range(1, len(lanes) + 1):
        if at == len(lanes) or lanes[at] != lanes[start]:
            yield lanes[start], at - start
            start = at


def encoded(pairs: Mapping[str, Pair], preset: Preset) -> dict[str, bytes]:
    """The records that `diff` makes of the pairs."""
    base = {name: pair[0] for name, pair in pairs.items() if pair[0] is not None}
    post = {name: pair[1] for name, pair in pairs.items()}
    with tempfile.TemporaryDirectory() as path:
        found, _ = records(Path(path) / "pair", base, post, preset)
    return {name: record.data for name, record in found.items()}


def _write_records() -> None:
    pairs = cases()
    by_preset = {preset: encoded(pairs, preset) for preset in PRESETS}
    for name, (base, post) in pairs.items():
        document = {
            "baseDtype": None if base is None else base.dtype,
            "postDtype": post.dtype,
            "shape": list(post.shape),
            "base": None if base is None else _runs(base.data, lane_of(base.dtype).width),
            "post": _runs(post.data, lane_of(post.dtype).width),
            "records": {preset: found[name].hex() for preset, found in by_preset.items()},
        }
        (DIRECTORY / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    for name, (base, delta, post) in given_cases().items():
        document = {
            "baseDtype": base.dtype,
            "postDtype": post.dtype,
            "deltaDtype": delta.dtype,
            "shape": list(post.shape),
            "base": _runs(base.data, lane_of(base.dtype).width),
            "delta": _runs(delta.data, lane_of(delta.dtype).width),
            "post": _runs(post.data, lane_of(post.dtype).width),
            "records": {preset: encoded_given(base, delta, post, preset).hex() for preset in PRESETS},
        }
        (DIRECTORY / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    release = ".".join(map(str, zstandard.ZSTD_VERSION))
    (DIRECTORY / "zstd.json").write_text(json.dumps({"zstd": release}) + "\n")


def _write_artifact() -> None:
    pairs = {name: pair for name, pair in cases().items() if not name.endswith("frames")}
    base = {name: pair[0] for name, pair in pairs.items() if pair[0] is not None}
    post = {name: pair[1] for name, pair in pairs.items()}
    base |= {"removed": of("F32", np.zeros(3, np.uint32)), "same": of("BF16", np.arange(9, dtype=np.uint16))}
    post |= {"same": of("BF16", np.arange(9, dtype=np.uint16))}
    # Nothing changes but the dtype.
    base |= {"wider": of("BF16", np.array([0x3F80, 0x8000, 0x7F80], np.uint16))}
    post |= {"wider": of("F32", np.array([0x3F800000, 0x80000000, 0x7F800000], np.uint32))}
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "home"
        before = write_checkpoint(ARTIFACT / "base", base)
        after = write_checkpoint(ARTIFACT / "post", post)
        (after / "tokenizer.json").write_text('{"version": "1.0"}\n')
        deltareg.diff(before, after, deltareg.Registry(home), NAME, licence="apache-2.0", description="golden")
        layout = ARTIFACT / "layout"
        shutil.copytree(home / "registry", layout, ignore=shutil.ignore_patterns("tmp", "lock"))


def main() -> int:
    """Write all golden files."""
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    DIRECTORY.mkdir()
    _write_records()
    _write_low_rank()
    _write_artifact()
    files = [path for path in DIRECTORY.rglob("*") if path.is_file()]
    print(f"{len(files)} files, {sum(path.stat().st_size for path in files)} bytes in {DIRECTORY.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
