"""Projections: their size, their accuracy on every kind of delta, the same bytes always, and damage refused."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltareg.artifact import pack, unpack
from deltareg.codec import FRAME_LANES
from deltareg.errors import BadManifest, UnsupportedFormat
from deltareg.manifest import TensorEntry
from deltareg.sketch.projection import Sketcher
from deltareg.sketch.sketches import (
    Sketch,
    pack_sketches,
    read_sketches,
    samples_of,
    width_of,
)

Array = np.ndarray[Any, Any]


def entry(name: str, *shape: int, dtype: str = "F32", changed: int = 1) -> TensorEntry:
    return TensorEntry(
        name=name, kind="palette", base_dtype=dtype, post_dtype=dtype, shape=list(shape), changed=changed, delta_norm=1
    )


def sketch_of(delta: Array, name: str = "w") -> Sketch:
    sketcher = Sketcher()
    for number, start in enumerate(range(0, delta.size, FRAME_LANES)):
        sketcher.add(name, delta.size, number, delta[start : start + FRAME_LANES])
    return sketcher.finish()[name]


def cosine(one: Array, other: Array) -> float:
    a, b = one.astype(np.float64), other.astype(np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


# --- size ---------------------------------------------------------------------------------------------------------


def test_model_of_8_billion_has_a_megabyte_at_most() -> None:
    layer = {"q": (4096, 4096), "k": (1024, 4096), "v": (1024, 4096), "o": (4096, 4096)}
    layer |= {"gate": (14336, 4096), "up": (14336, 4096), "down": (4096, 14336), "norm1": (4096,), "norm2": (4096,)}
    entries = [entry(f"model.layers.{n}.{name}", *shape) for n in range(32) for name, shape in layer.items()]
    entries += [entry("embed_tokens", 128256, 4096), entry("lm_head", 128256, 4096), entry("norm", 4096)]
    draw = np.random.default_rng(0)
    sketches: dict[str, Sketch] = {}
    for one in entries:
        lanes = math.prod(one.shape)
        bits = np.packbits(draw.integers(0, 2, width_of(lanes), np.uint8), bitorder="little")
        sketches[one.name] = Sketch(lanes, bits, draw.integers(-1, 2, samples_of(lanes)).astype(np.int8))
    data = pack_sketches(sketches, entries)
    assert len(data) < 1_000_000
    read = read_sketches(data, entries)
    assert list(read) == [one.name for one in entries]
    for name, sketch in read.items():
        assert np.array_equal(sketch.bits, sketches[name].bits)
        assert np.array_equal(sketch.samples, sketches[name].samples)


@settings(max_examples=300)
@given(st.integers(1, 2**36))
def test_widths_are_prime_and_samples_a_quarter_of_the_sketch_at_most(lanes: int) -> None:
    width = width_of(lanes)
    assert all(width % factor for factor in range(2, math.isqrt(width) + 1))
    assert width_of(lanes) <= width_of(2 * lanes)
    assert 0 < samples_of(lanes) <= lanes
    assert 4 * 1.6 * samples_of(lanes) <= width + 1.6 * samples_of(lanes)


def test_no_lanes_have_no_projection() -> None:
    assert width_of(0) == samples_of(0) == 0


# --- accuracy -----------------------------------------------------------------------------------------------------


def of_kind(kind: str, lanes: int, seed: int) -> tuple[Array, Array]:
    """Two independent vectors that are large at the same places."""
    draw = np.random.default_rng(seed)
    one, other = draw.standard_normal((2, lanes), np.float32)
    if kind == "heavy tails":
        scale: Any = (1 / np.sqrt(draw.chisquare(2, lanes))).astype(np.float32)
    elif kind == "sparse":
        scale = draw.random(lanes) < 1e-3
    elif kind == "few rows":
        scale = np.repeat(draw.random(-(-lanes // 512)) < 0.01, 512)[:lanes]
    elif kind == "few columns":
        scale = np.tile(draw.random(512) < 0.01, -(-lanes // 512))[:lanes] + np.float32(1e-3)
    else:
        scale = np.float32(1e-4)
    return one * scale, other * scale


@pytest.mark.parametrize("kind", ["light", "heavy tails", "sparse", "few rows", "few columns"])
@pytest.mark.parametrize("wanted", [-0.5, 0.0, 0.1, 0.9])
def test_cosine_is_estimated_within_its_error(kind: str, wanted: float) -> None:
    scores: list[float] = []
    for seed, lanes in enumerate((384, 50_000, 589_824, 589_824, 2**23 + 77)):
        one, other = of_kind(kind, lanes, seed)
        if not one.any():
            continue
        mixed = wanted * one / np.linalg.norm(one) + math.sqrt(1 - wanted**2) * other / np.linalg.norm(other)
        estimate, error = sketch_of(one).angle(sketch_of(mixed.astype(np.float32)))
        assert error < (0.009 if lanes > 2**23 else 0.05)
        scores.append((estimate - cosine(one, mixed)) / error)
    assert np.abs(scores).max() < 4, scores
    assert math.sqrt(np.mean(np.square(scores))) < 2, scores


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_dtypes_agree(dtype: str) -> None:
    values = np.random.default_rng(1).standard_normal(70_001)
    values = (values.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    values = values.astype(np.float16).astype(np.float32)
    values = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)  # numbers that every dtype holds
    values[:2] = 2.0**-20, -(2.0**-24)
    typed = {
        "BF16": (values.view(np.uint32) >> 16).astype(np.uint16),
        "F16": values.astype(np.float16).view(np.int16),
        "F32": values,
        "F64": values.astype(np.float64),
    }[dtype]
    one, other = sketch_of(typed), sketch_of(values)
    assert np.array_equal(one.bits, other.bits)
    assert np.array_equal(one.samples, other.samples)


@pytest.mark.parametrize("changed", [1, 2, 3, 70_000])
def test_a_delta_agrees_with_itself_and_opposes_its_negative(changed: int) -> None:
    delta = np.zeros(70_000, np.float32)
    delta[np.random.default_rng(changed).permutation(70_000)[:changed]] = 0.5
    one, same, opposed = sketch_of(delta), sketch_of(3 * delta), sketch_of(-delta)
    assert one.angle(same)[0] == 1
    assert one.angle(opposed)[0] == pytest.approx(-1, abs=1e-4)
    both, against = one.opposition(opposed)
    assert both == against


def test_sampled_signs_give_the_share_of_opposed_lanes() -> None:
    draw = np.random.default_rng(5)
    one = np.where(draw.random(3_000_000) < 0.5, draw.standard_normal(3_000_000), -0.0).astype(np.float32)
    other = np.where(draw.random(one.size) < 0.2, -1, 1).astype(np.float32) * one
    other[draw.random(one.size) < 0.2] = 0
    both, opposed = sketch_of(one).opposition(sketch_of(other))
    assert both / samples_of(one.size) == pytest.approx(0.4, abs=0.06)
    assert opposed / both == pytest.approx(0.2, abs=0.08)


def test_what_is_no_number_counts_as_nothing() -> None:
    delta = np.random.default_rng(2).standard_normal(5000)
    clean = delta.copy()
    for place, value in enumerate((np.nan, np.inf, -np.inf, 1e300, -1.7e308)):
        delta[place::50], clean[place::50] = value, 0
    assert np.array_equal(sketch_of(delta).bits, sketch_of(clean).bits)
    samples = sketch_of(delta).samples
    assert set(samples.tolist()) <= {-1, 0, 1}


@pytest.mark.parametrize("value", [0.0, -0.0, np.nan])
def test_a_delta_that_changes_nothing_has_no_projection(value: float) -> None:
    sketcher = Sketcher()
    sketcher.add("w", 1000, 0, np.full(1000, value, np.float32))
    sketcher.add("v", 1000, 0, None)
    assert sketcher.finish() == {}


# --- the same always ----------------------------------------------------------------------------------------------


def test_bytes_do_not_depend_on_threads_or_order() -> None:
    draw = np.random.default_rng(7)
    lanes = 3 * FRAME_LANES + 12_345
    frames: list[tuple[str, int, int, Array | None]] = []
    for name in ("a", "b"):
        delta = (draw.standard_normal(lanes) * 10.0 ** draw.integers(-8, 8, lanes)).astype(np.float32)
        frames += [(name, lanes, n, delta[n * FRAME_LANES : (n + 1) * FRAME_LANES]) for n in range(4)]
    frames[1] = (*frames[1][:3], None)
    entries = [entry("a", lanes), entry("b", lanes)]
    found: set[bytes] = set()
    for seed, threads in itertools.product(range(4), (1, 2, 5)):
        sketcher = Sketcher()
        order = np.random.default_rng(seed).permutation(len(frames))
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda number, add=sketcher.add: add(*frames[number]), order))
        found.add(pack_sketches(sketcher.finish(), entries))
    assert len(found) == 1


def test_projection_is_what_the_format_says() -> None:
    # Written anew from docs/format.md, slowly: what is stored today must mean the same next year.
    from blake3 import blake3

    mask = 2**64 - 1

    def mixed(key: int, counter: int) -> int:
        z = (key + (counter + 1) * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    def sign(key: int, place: int) -> int:
        return -1 if mixed(key, place >> 6) >> (place & 63) & 1 else 1

    delta = np.random.default_rng(3).integers(-50, 51, 3000).astype(np.float64)  # integers: no sum is rounded
    digest = blake3(b"layer.\xc3\xa9").digest()
    keys = [int.from_bytes(digest[8 * n : 8 * n + 8], "little") for n in range(3)]
    buckets = [0.0] * 1024
    for place, value in enumerate(delta):
        buckets[place % 1021] += sign(keys[0], place) * value
    hadamard = np.array([[1.0]])
    while len(hadamard) < 1024:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    once = hadamard @ [sign(keys[1], j) * value for j, value in enumerate(buckets)]
    twice = hadamard @ [sign(keys[1], 1024 + j) * value for j, value in enumerate(once)]
    bits = np.where(twice == 0, once, twice)[:1021] < 0
    edges = [n * 3000 // 127 for n in range(128)]
    places = [a + mixed(keys[2], n) % (b - a) for n, (a, b) in enumerate(itertools.pairwise(edges))]
    made = sketch_of(delta, "layer.é")
    assert np.array_equal(np.unpackbits(made.bits, count=1021, bitorder="little"), bits)
    assert made.samples.tolist() == np.sign(delta[places]).tolist()


# --- wrong use, and damage ----------------------------------------------------------------------------------------


def test_frames_that_do_not_fit_are_refused() -> None:
    sketcher = Sketcher()
    delta = np.ones(FRAME_LANES, np.float32)
    sketcher.add("w", FRAME_LANES + 5, 0, delta)
    for lanes, number, frame in ((FRAME_LANES + 5, 0, delta), (FRAME_LANES + 5, 1, delta), (FRAME_LANES + 5, 2, None)):
        with pytest.raises(ValueError, match="w"):
            sketcher.add("w", lanes, number, frame)
    with pytest.raises(ValueError, match="lack"):
        sketcher.finish()


ENTRIES = [entry("a", 3000), entry("i", 10, dtype="I64"), entry("b", 40, 20), entry("c", 5)]


@pytest.fixture(scope="module")
def stored() -> bytes:
    sketcher = Sketcher()
    for one in ENTRIES:
        if one.post_dtype == "F32":
            lanes = math.prod(one.shape)
            sketcher.add(one.name, lanes, 0, np.random.default_rng(lanes).standard_normal(lanes).astype(np.float32))
    return pack_sketches(sketcher.finish(), ENTRIES)


def raw_of(stored: bytes) -> bytearray:
    return bytearray(unpack(stored, limit=10**6, what="test"))


def test_only_known_additive_tensors_are_stored(stored: bytes) -> None:
    assert list(read_sketches(stored, ENTRIES)) == ["a", "b", "c"]
    sketches = read_sketches(stored, ENTRIES)
    assert list(read_sketches(pack_sketches(sketches, ENTRIES[:2]), ENTRIES[:2])) == ["a"]
    assert read_sketches(pack_sketches({}, ENTRIES), ENTRIES) == {}


def test_every_truncation_is_refused(stored: bytes) -> None:
    raw = raw_of(stored)
    for length in range(len(raw)):
        with pytest.raises(BadManifest):
            read_sketches(pack(bytes(raw[:length])), ENTRIES)
    for data in (b"", stored[:-1], stored + b"\0", b"no zstd at all", pack(bytes(raw) + b"\0")):
        with pytest.raises(BadManifest):
            read_sketches(data, ENTRIES)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, 0),  # magic
        (8, 200),  # more tensors than there are
        (8, 2),  # fewer than follow
        (12, 1),  # a tensor that is not added to
        (16, 0),  # twice the same
        (20, 9),  # beyond the inventory
        (12, 2),  # not in order
    ],
)
def test_contradictions_are_refused(stored: bytes, place: int, value: int) -> None:
    raw = raw_of(stored)
    raw[place] = value
    with pytest.raises(BadManifest):
        read_sketches(pack(bytes(raw)), ENTRIES)


def test_bits_and_digits_beyond_the_end_are_refused(stored: bytes) -> None:
    body = 12 + 4 * 3
    for place, value in ((body + 127, 0xFF), (body + 128, 243)):
        raw = raw_of(stored)
        raw[place] = value
        with pytest.raises(BadManifest, match="'a'"):
            read_sketches(pack(bytes(raw)), ENTRIES)


def test_another_version_is_told(stored: bytes) -> None:
    raw = raw_of(stored)
    raw[4] = 2
    with pytest.raises(UnsupportedFormat, match="version 2"):
        read_sketches(pack(bytes(raw)), ENTRIES)


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    with pytest.raises(BadManifest, match="allowed"):
        read_sketches(pack(bytes(50_000_000)), ENTRIES)


@settings(max_examples=200)
@given(st.data())
def test_damage_is_refused_or_read_as_projections(data: st.DataObject) -> None:
    sketches = {"a": Sketch(3000, np.zeros(128, np.uint8), np.zeros(127, np.int8))}
    raw = bytearray(unpack(pack_sketches(sketches, ENTRIES), limit=10**6, what="test"))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = read_sketches(pack(bytes(raw)), ENTRIES)
    except (BadManifest, UnsupportedFormat):
        return
    for name, sketch in read.items():
        assert name in {"a", "b", "c"}
        assert -1 <= sketch.angle(sketch)[0] <= 1
        assert set(sketch.samples.tolist()) <= {-1, 0, 1}
