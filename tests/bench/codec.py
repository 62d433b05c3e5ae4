"""The codec's own loops on one core: what ADR 6 and ADR 7 rest on.

    python -m tests.bench.codec

prints the time of both ways from tokens to symbols, and size and time of arithmetic codes on the protein model.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltareg.codec import FRAME_LANES, kernels
from deltareg.codec.tokens import ROOM, WIDE, symbols_of
from tests import raw, weights
from tests.bench.peers import TensorPair, delta_of, entropy, pairs_of

__all__ = ["main"]

_FRAMES = 16
_ESCAPED = 0.014


def _seconds(work: Callable[[], Any], repeats: int = 9) -> float:
    work()
    found: list[float] = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def _frame(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.uint16]]:
    """Tokens of five bits of entropy, escapes as a 1.3 GB fine-tune has them, and room for the symbols."""
    draw = np.random.default_rng(seed)
    tokens = np.clip(np.rint(draw.normal(127, 12, FRAME_LANES)), 0, 254).astype(np.uint8)
    escaped = draw.random(FRAME_LANES) < _ESCAPED
    tokens[escaped] = 255
    escapes = draw.integers(0, 1 << 16, int(escaped.sum()) + ROOM).astype(np.uint16)
    return tokens, escapes, np.empty(FRAME_LANES, np.uint16)


def _print_tokens() -> None:
    table = np.arange(256, dtype=np.uint16)
    frames = [_frame(seed) for seed in range(_FRAMES)]
    for wide in (False, True) if WIDE else (False,):
        seconds = _seconds(lambda wide=wide: [symbols_of(t, table, 255, e, s, wide=wide) for t, e, s in frames])
        rate = _FRAMES * FRAME_LANES / seconds / 1e9
        print(f"tokens to symbols, {'wide' if wide else 'plain'} loop: {rate:.1f} billion elements a second")
    if not WIDE:
        print("tokens to symbols: this processor has no wide loop")


def _print_arithmetic() -> None:
    models = weights.anarcii(bf16=True)
    pairs = pairs_of(raw.read(models["antibody_4_2"]), raw.read(models["shark_4_2"]))
    pairs = [pair for pair in pairs if pair.base is not None and pair.spec.dtype == "BF16"]
    symbols = [_symbols(pair) for pair in pairs]
    elements = sum(part.size for part in symbols)
    codes = [np.empty(2 * part.size, np.uint8) for part in symbols]
    used = [int(kernels.arithmetic_encode(part, code)) for part, code in zip(symbols, codes, strict=True)]
    outs = [np.empty_like(part) for part in symbols]
    coded = [code[:count].copy() for code, count in zip(codes, used, strict=True)]
    encoding = _seconds(lambda: [kernels.arithmetic_encode(*one) for one in zip(symbols, codes, strict=True)], 3)
    decoding = _seconds(lambda: [kernels.arithmetic_decode(*one) for one in zip(coded, outs, strict=True)], 3)
    if not all(map(np.array_equal, outs, symbols)):
        raise AssertionError("an arithmetic code does not give its symbols back")
    print(f"arithmetic code of anarcii shark: {sum(used):,} bytes, H of D1 {entropy(pairs).symbol_bits / 8:,.0f}")
    print(f"  {encoding / elements * 1e9:.0f} ns an element to encode, {decoding / elements * 1e9:.0f} to decode")


def _symbols(pair: TensorPair) -> NDArray[np.uint16]:
    assert pair.base is not None
    return delta_of(pair.base.view(np.uint16), pair.post.view(np.uint16), "BF16")


def main() -> int:
    """Measure and print."""
    _print_tokens()
    _print_arithmetic()
    return 0


if __name__ == "__main__":
    sys.exit(main())
