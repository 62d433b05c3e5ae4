"""Which record kind is chosen for what, at every size at which a frame can go wrong."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deltareg.codec import FRAME_LANES, Frame, Kind, Preset
from tests.codec.oracle import FORMATS
from tests.codec.tensors import Raw, Record, of, records, reproduce

Array = NDArray[Any]
Pair = tuple[Array, Array]

FEW = (0, 1, 2, 15, 16, 17)
SIZES = {
    "fast": (*FEW, 4096, 4097, 65535, 65536, (1 << 20) - 1, 1 << 20, (1 << 20) + 1),
    "small": (*FEW, 4097, 65535, 1 << 18, (1 << 18) + 1, (1 << 20) + 1),
}
BF16 = FORMATS["BF16"]


def base_of(size: int, seed: int = 1) -> Array:
    """Weights as models have them."""
    return BF16.narrow(np.random.default_rng([seed, size]).normal(0, 0.02, size))


def moved(base: Array, steps: Array) -> Array:
    """Every lane some units in the last place further."""
    return (base + steps).astype(np.uint16)


def unchanged(size: int) -> Pair:
    return base_of(size), base_of(size)


def many_steps(size: int) -> Pair:
    """Differences of a few hundred sizes, some of them far more frequent than others."""
    generator = np.random.default_rng([2, size])
    base = base_of(size)
    return base, BF16.narrow(BF16.widen(base) + generator.normal(0, 2e-4, size))


def few_steps(size: int) -> Pair:
    """Differences of four sizes: less than two bits a lane."""
    generator = np.random.default_rng([3, size])
    base = BF16.narrow(generator.uniform(1.0, 1.9, size))
    return base, moved(base, generator.choice([0, 1, 2, 3], size, p=[0.5, 0.3, 0.15, 0.05]))


def rare_steps(size: int) -> Pair:
    """One lane of a thousand differs."""
    generator = np.random.default_rng([4, size])
    base = base_of(size)
    return base, moved(base, generator.integers(1, 40, size) * (generator.random(size) < 1e-3))


def noise(size: int) -> Pair:
    """Nothing is alike: post has no relation to base but its exponents."""
    generator = np.random.default_rng([5, size])
    base = BF16.narrow(generator.normal(0, 1, size))
    return base, BF16.narrow(generator.normal(0, 1, size) * 2.0 ** generator.integers(-60, 60, size))


PAIRS: Mapping[str, Callable[[int], Pair]] = {
    "unchanged": unchanged,
    "many steps": many_steps,
    "few steps": few_steps,
    "rare steps": rare_steps,
    "noise": noise,
}


@pytest.fixture(scope="module", params=["fast", "small"])
def preset(request: pytest.FixtureRequest) -> Preset:
    return request.param


@pytest.fixture(scope="module")
def stored(preset: Preset, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What `diff` makes of each pair at each size: base and post tensors, records and inventory entries by name."""
    pairs = {f"{name} {size}": make(size) for name, make in PAIRS.items() for size in SIZES[preset]}
    base = {name: of("BF16", pair[0]) for name, pair in pairs.items()}
    post = {name: of("BF16", pair[1]) for name, pair in pairs.items()}
    path = tmp_path_factory.mktemp("kinds") / preset
    return base, post, *records(path, base, post, preset)


def test_every_kind_gives_post_at_every_size(stored: Any) -> None:
    base, post, found, entries = stored
    assert entries.keys() == base.keys()
    for name, entry in entries.items():
        if entry.kind == "zero":
            assert base[name] == post[name], name
            assert name not in found
        else:
            assert found[name].produced(base[name]) == post[name].data, name


# The kind from so many lanes on. The arithmetic code ends where it would take too long: in preset small at 2^18 lanes.
FITTING: Mapping[str, Mapping[str, Mapping[int, str]]] = {
    "fast": {
        "many steps": {4096: "arithmetic", 4097: "palette"},
        "few steps": {4096: "arithmetic", 4097: "palette"},
        "rare steps": {4096: "arithmetic", 4097: "sparse"},
        "noise": {4096: "planes", 4097: "palette", 65535: "planes"},
    },
    "small": {
        "many steps": {4097: "arithmetic", (1 << 18) + 1: "palette"},
        "few steps": {4097: "arithmetic", 65535: "palette"},
        "rare steps": {4097: "arithmetic", 65535: "sparse"},
        "noise": {4097: "planes"},
    },
}


def test_kinds_are_those_that_fit(preset: Preset, stored: Any) -> None:
    base, _, _, entries = stored
    assert {entries[name].kind for name in base if name.startswith("unchanged")} == {"zero"}
    for name, fitting in FITTING[preset].items():
        for size in SIZES[preset]:
            if size >= min(fitting):
                wanted = fitting[max(least for least in fitting if least <= size)]
                assert entries[f"{name} {size}"].kind == wanted, (name, size)


def test_record_is_smaller_than_what_it_replaces(stored: Any) -> None:
    base, _, found, _ = stored
    for name, record in found.items():
        raw = len(base[name].data)
        assert len(record.data) <= raw + raw // 8 + 64 or name.startswith("noise"), name


def test_two_ranks_share_a_byte_where_few_symbols_occur() -> None:
    base, post = few_steps(1 << 16)
    nibbles, _ = reproduce("BF16", "BF16", base, post)
    assert nibbles.kind is Kind.PALETTE
    # 1.65 bits a lane is what the steps hold; one byte for each lane cannot go below, nor a Huffman code for bytes.
    assert 8 * len(nibbles.data) / base.size < 1.9


def test_frames_hold_a_million_lanes(stored: Any) -> None:
    _, _, found, _ = stored
    for name, record in found.items():
        size = int(name.rpartition(" ")[2])
        counts = [place.lanes for place in record.reader().frames]
        assert counts == [FRAME_LANES] * (size // FRAME_LANES) + [size % FRAME_LANES] * (size % FRAME_LANES > 0)


# --- frames alone -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_record(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Raw, Raw]:
    """A record of five frames of different kinds, the last one short."""
    makers = [unchanged, few_steps, rare_steps, noise]
    pairs = [make(FRAME_LANES) for make in makers] + [many_steps(777)]
    base, post = (of("BF16", np.concatenate([pair[side] for pair in pairs])) for side in (0, 1))
    found, _ = records(tmp_path_factory.mktemp("long") / "pair", {"weight": base}, {"weight": post})
    return found["weight"], base, post


def test_frames_are_decoded_alone_and_in_any_order(long_record: tuple[Record, Raw, Raw]) -> None:
    record, base, post = long_record
    assert record.produced(base) == post.data
    straight = record.frames()
    order = list(range(len(straight)))
    random.Random(1).shuffle(order)
    for number, frame in zip(order, record.frames(order=order), strict=True):
        assert same(frame, straight[number])
    assert same(record.reader().read(3), straight[3])


def test_frames_are_decoded_in_many_threads_at_once(long_record: tuple[Record, Raw, Raw]) -> None:
    record, _, _ = long_record
    straight, reader = record.frames(), record.reader()
    with ThreadPoolExecutor(4) as pool:
        frames = list(pool.map(reader.read, [number % len(straight) for number in range(40)]))
    assert all(same(frame, straight[number % len(straight)]) for number, frame in enumerate(frames))


def same(one: Frame, other: Frame) -> bool:
    """Whether two frames say the same."""

    def arrays(frame: Frame) -> list[Array | None]:
        mending, overwrites = frame.mending, frame.overwrites
        found = [frame.symbols, frame.positions]
        found += [None, None] if mending is None else [mending.positions, mending.codes]
        found += [None] * 3 if overwrites is None else [overwrites.positions, overwrites.base, overwrites.post]
        return found

    return one.lanes == other.lanes and all(
        a is b if a is None or b is None else np.array_equal(a, b)
        for a, b in zip(arrays(one), arrays(other), strict=True)
    )


# --- what a tensor's kind is called -------------------------------------------------------------------------------


def vector(dtype: str, *values: int, size: int = 40) -> Raw:
    """A tensor of one value, but for its first lanes."""
    bits = np.zeros(size, np.uint64)
    bits[: len(values)] = values
    return of(dtype, bits)


def test_inventory_names_what_is_changed_added_and_removed(tmp_path: Path) -> None:
    base = {
        "same": vector("BF16", 7),
        "float": vector("BF16", 0x3F80, 0x3F80),
        "integer": vector("I64", 1, 2, 3),
        "gone": vector("F32", 1),
        "empty": Raw("F32", (0, 3), b""),
        "scalar": Raw("F32", (), bytes(4)),
        "wider": vector("BF16", 0x3F80),
        "only wider": vector("BF16", 0x3F80),
    }
    post = {
        "same": vector("BF16", 7),
        "float": vector("BF16", 0x3F81, 0x3F80),
        "integer": vector("I64", 1, 2, 4),
        "empty": Raw("F32", (0, 3), b""),
        "scalar": Raw("F32", (), b"\0\0\x80\x3f"),
        "wider": vector("F32", 0x3F800001),
        "only wider": vector("F32", 0x3F800000),
        "new": vector("F16", 9),
        "new and empty": Raw("I32", (2, 0), b""),
    }
    found, entries = records(tmp_path / "pair", base, post)
    kinds = {name: (entry.kind, entry.changed) for name, entry in entries.items()}
    assert kinds.pop("scalar")[0] in ("planes", "sparse")
    assert kinds.pop("wider")[0] in ("planes", "sparse")
    assert kinds == {
        "float": ("arithmetic", 1),
        "same": ("zero", 0),
        "integer": ("full", 1),
        "gone": ("removed", 0),
        "empty": ("zero", 0),
        "only wider": ("zero", 0),
        "new": ("full", 40),
        "new and empty": ("full", 0),
    }
    for name, record in found.items():
        assert record.produced(base.get(name)) == post[name].data


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_a_lane_that_only_an_overwrite_can_give_is_a_change(tmp_path: Path, dtype: str) -> None:
    minus_zero = 1 << (8 * FORMATS[dtype].width - 1)
    base, post = {"weight": vector(dtype)}, {"weight": vector(dtype, minus_zero)}
    found, entries = records(tmp_path / "pair", base, post)
    assert entries["weight"].kind != "zero"
    assert (entries["weight"].changed, entries["weight"].overwritten) == (1, 1)
    assert found["weight"].produced(base["weight"]) == post["weight"].data


def test_one_changed_lane_of_a_long_tensor_is_a_change(tmp_path: Path) -> None:
    size = 12 * FRAME_LANES
    bits = np.zeros(size, np.uint8)
    base = {"weight": of("U8", bits), "float": of("BF16", np.zeros(size, np.uint16))}
    bits[5] = 1
    changed = np.zeros(size, np.uint16)
    changed[-1] = 0x3F80
    post = {"weight": of("U8", bits), "float": of("BF16", changed)}
    found, entries = records(tmp_path / "pair", base, post)
    assert (entries["weight"].kind, entries["float"].kind) == ("full", "sparse")
    for name, record in found.items():
        assert record.produced(base[name]) == post[name].data
        assert len(record.data) < 600


def test_norms_of_enormous_numbers_are_finite(tmp_path: Path) -> None:
    big = np.full(3000, 1.2e154).view(np.uint64)
    base = {"weight": of("F64", big), "other": of("F64", np.zeros(2, np.uint64))}
    post = {"weight": of("F64", np.zeros(3000, np.uint64)), "other": of("F64", np.zeros(2, np.uint64))}
    found, entries = records(tmp_path / "pair", base, post)
    assert found["weight"].produced(base["weight"]) == post["weight"].data
    assert np.isfinite([entries["weight"].base_norm, entries["weight"].delta_norm]).all()
