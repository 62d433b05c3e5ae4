"""The yardstick itself: sizes that can be worked out by hand, and the figures of the design on the real pairs."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests import raw, weights
from tests.bench import peers, process


def pair_of(base: list[float], post: list[float]) -> peers.TensorPair:
    spec = raw.TensorSpec("w", "BF16", (len(post),))
    bits = [raw.to_bf16(np.array(values, np.float32)).view(np.uint8) for values in (base, post)]
    return peers.TensorPair(spec, bits[0], bits[1])


def test_delta_is_negative_zero_where_nothing_changed() -> None:
    bits = np.array([0x0000, 0x8000, 0x3F80, 0x7FC1], np.uint16)
    assert peers.delta_of(bits, bits, "BF16").tolist() == [0x8000] * 4


def test_entropy_counts_symbols_of_each_tensor_apart() -> None:
    two_symbols = pair_of([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.5, 1.5])
    one_symbol = pair_of([1.0, 1.0], [2.0, 2.0])
    found = peers.entropy([two_symbols, one_symbol])
    assert (found.elements, found.symbol_bits, found.mended, found.price_bits) == (6, 4.0, 0, 0.0)


def test_entropy_charges_what_base_and_d1_do_not_give() -> None:
    # 1 + round(2**-20 - 1) is 0 in bfloat16, not 2**-20: the element needs mending.
    found = peers.entropy([pair_of([1.0] * 4, [2.0**-20, 1.0, 1.0, 1.0])])
    positions = 4 * (0.25 * math.log2(4) + 0.75 * math.log2(4 / 3))
    assert found.mended == 1
    assert found.price_bits == pytest.approx(positions + 4)


def test_bitx_counts_every_frame_and_packs_tensors_that_base_lacks() -> None:
    rng = np.random.default_rng(1)
    post = rng.integers(0, 256, 3 << 20, np.uint8)
    spec = raw.TensorSpec("w", "BF16", (post.size // 2,))
    same = peers.bitx([peers.TensorPair(spec, post, post)])
    alone = peers.bitx([peers.TensorPair(spec, None, post)])
    assert same.size < 1000
    assert alone.size > post.size
    assert same.framing == alone.framing
    assert same.framing > 4 * 2 * 2  # two planes of one and a half MiB: two chunks each


def test_real_pairs_give_the_figures_of_the_design(minilm_bf16: weights.Pair, anarcii_bf16: Mapping[str, Path]) -> None:
    for base, post, entropy, bitx in [
        (minilm_bf16.base, minilm_bf16.post, 3.03, 3.38),
        (anarcii_bf16["antibody_4_2"], anarcii_bf16["shark_4_2"], 4.42, 5.20),
    ]:
        pairs = peers.pairs_of(raw.read(base), raw.read(post))
        parameters = sum(pair.post.size // 2 for pair in pairs)
        assert peers.entropy(pairs).bits_per_element == pytest.approx(entropy, abs=0.01)
        assert peers.bitx(pairs).size * 8 / parameters == pytest.approx(bitx, abs=0.01)


def test_zstd_result_is_whole(minilm_bf16: weights.Pair) -> None:
    data = raw.read(minilm_bf16.post)["embeddings.position_embeddings.weight"].data.tobytes()
    packed = peers.zstd(data)
    assert 0 < packed.total < len(data)
    assert packed.peer == "zstd -T2 -1"


def test_process_memory_is_that_of_the_process_alone() -> None:
    ballast = bytearray(300 << 20)
    small = process.run([sys.executable, "-S", "-c", "print('done')"])
    large = process.run([sys.executable, "-S", "-c", "x = bytearray(200 << 20); x[:] = b'1' * len(x)"])
    assert small.output == "done\n"
    assert small.peak < 100 << 20 < large.peak
    assert len(ballast) == 300 << 20


def test_failed_process_is_no_measurement() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        process.run([sys.executable, "-S", "-c", "1 / 0"])
