# pyright: basic
"""From tokens to symbols: the loop in which decoding spends most of its time.

There are two of it, with the same results. One does a token at a time, and runs anywhere. The other does 32 at a time
with AVX-512: the table lies in eight registers, and the escapes are spread over the lanes that ask for them. It is
written with LLVM's vectors, as no compiler makes them of a loop.

Both are in one file because numba keeps compiled code by the time stamp of the file that a loop stands in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic

from deltareg.codec.kernels import kernel
from deltareg.codec.lanes import Array

__all__ = ["ROOM", "WIDE", "highest_token", "symbols_of"]

ROOM = 32
"""Entries by which `escapes` is longer than the escapes that it holds."""


def _has_wide_vectors() -> bool:
    # Where numba is told to compile for another processor than this one, it is not asked what that one has.
    settings: Any = config
    if settings.CPU_NAME is not None or settings.CPU_FEATURES is not None or not settings.ENABLE_AVX:
        return False
    try:
        features = binding.get_host_cpu_features()
    except RuntimeError:  # LLVM does not know for this system
        return False
    return all(features.get(name) for name in ("avx512bw", "avx512vl", "avx512vbmi2"))


WIDE = _has_wide_vectors()
"""Whether this processor does 32 tokens at a time."""


def symbols_of(tokens: Array, table: Array, escape: int, escapes: Array, symbols: Array, *, wide: bool = WIDE) -> int:
    """Write the symbol (uint16) of each token (uint8); those of the tokens `escape` are `escapes`, in order.

    `table` has 256 entries, and `escapes` ends with `ROOM` that are not used. Returns how many tokens are `escape`; if
    they are more than the escapes, what the rest of them become is not defined.
    """
    loop = _many_at_a_time if wide else _one_at_a_time
    return int(loop(tokens, table, np.uint8(escape), escapes, symbols))


@kernel
def highest_token(tokens: Any) -> Any:
    """The highest of the tokens (uint8), 0 where there are none."""
    highest = np.uint8(0)
    for i in range(tokens.size):
        highest = max(highest, tokens[i])
    return highest


@kernel
def _one_at_a_time(tokens, table, escape, escapes, symbols):
    for i in range(tokens.size):
        symbols[i] = table[tokens[i]]
    used = 0
    last = escapes.size - ROOM
    words = tokens.size // 8
    # Eight tokens are compared at once: a byte of `hits` is 0x80 where one is the escape (Warren, "Hacker's Delight",
    # 6-1).
    low = np.uint64(0x7F7F7F7F7F7F7F7F)
    pattern = np.uint64(escape) * np.uint64(0x0101010101010101)
    eights = tokens[: 8 * words].view(np.uint64)
    for word in range(words):
        other = eights[word] ^ pattern
        hits = ~(((other & low) + low) | other | low)
        while hits:
            first = hits & (~hits + np.uint64(1))
            place = 8 * word
            place += 4 if first > np.uint64(0xFFFFFFFF) else 0
            first = first >> np.uint64(32) if first > np.uint64(0xFFFFFFFF) else first
            place += 2 if first > np.uint64(0xFFFF) else 0
            first = first >> np.uint64(16) if first > np.uint64(0xFFFF) else first
            place += 1 if first > np.uint64(0xFF) else 0
            symbols[place] = escapes[min(used, last)]
            used += 1
            hits &= hits - np.uint64(1)
    for place in range(8 * words, tokens.size):
        if tokens[place] == escape:
            symbols[place] = escapes[min(used, last)]
            used += 1
    return used


@kernel
def _many_at_a_time(tokens, table, escape, escapes, symbols):
    used = 0
    last = escapes.size - ROOM
    whole = tokens.size // 32 * 32
    for start in range(0, whole, 32):
        escaped = _look_up(tokens, start, table, escape, symbols)
        _put_escapes(escapes, min(used, last), escaped, symbols, start)
        used += _count(escaped)
    for place in range(whole, tokens.size):
        symbols[place] = table[tokens[place]]
        if tokens[place] == escape:
            symbols[place] = escapes[min(used, last)]
            used += 1
    return used


# --- what LLVM is told ------------------------------------------------------------------------------------------------

# A function that numba calls with types, once, and that LLVM code comes from. Its caller gives all but the first one.
intrinsic: Any = numba_intrinsic

_LANES = 32
_BYTES = ir.VectorType(ir.IntType(8), _LANES)
_WORDS = ir.VectorType(ir.IntType(16), _LANES)
_MASK = ir.VectorType(ir.IntType(1), _LANES)


def _vector(context, builder, array_type, array, index, vector):
    """The address of 32 entries of an array from `index` on. Nothing checks that they are there."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _broadcast(builder, scalar, vector):
    """A vector that has the scalar in every lane."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES)
    return builder.shuffle_vector(first, undefined, zeros)


@intrinsic
def _look_up(typing, tokens, start, table, escape, symbols):
    """The symbols of 32 tokens; gives a bit for each of them that is the escape."""

    def generate(context, builder, signature, values):
        tokens_, start_, table_, escape_, symbols_ = values
        kinds = signature.args
        bytes_ = builder.load(_vector(context, builder, kinds[0], tokens_, start_, _BYTES), align=1)
        words = builder.zext(bytes_, _WORDS)
        # Two registers hold 64 entries, of which the low six bits of a token take one. The high two say which pair.
        permute = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_WORDS, [_WORDS] * 3), "llvm.x86.avx512.vpermi2var.hi.512"
        )
        quarters = []
        for quarter in range(4):
            halves = []
            for half in range(2):
                index = ir.Constant(ir.IntType(64), 64 * quarter + 32 * half)
                halves.append(builder.load(_vector(context, builder, kinds[2], table_, index, _WORDS), align=2))
            quarters.append(builder.call(permute, [halves[0], words, halves[1]]))

        def where(bit):
            picked = builder.and_(words, ir.Constant(_WORDS, [bit] * _LANES))
            return builder.icmp_unsigned("!=", picked, ir.Constant(_WORDS, [0] * _LANES))

        odd, high = where(64), where(128)
        low_half = builder.select(odd, quarters[1], quarters[0])
        high_half = builder.select(odd, quarters[3], quarters[2])
        out = _vector(context, builder, kinds[4], symbols_, start_, _WORDS)
        builder.store(builder.select(high, high_half, low_half), out, align=2)
        hits = builder.icmp_unsigned("==", bytes_, _broadcast(builder, escape_, _BYTES))
        return builder.bitcast(hits, ir.IntType(_LANES))

    return types.uint32(tokens, types.int64, table, types.uint8, symbols), generate


@intrinsic
def _put_escapes(typing, escapes, first, mask, symbols, start):
    """Put the escapes from `first` on into those of 32 symbols whose bits are set, in order."""

    def generate(context, builder, signature, values):
        escapes_, first_, mask_, symbols_, start_ = values
        kinds = signature.args
        source = builder.load(_vector(context, builder, kinds[0], escapes_, first_, _WORDS), align=2)
        out = _vector(context, builder, kinds[3], symbols_, start_, _WORDS)
        expand = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_WORDS, [_WORDS, _WORDS, _MASK]), "llvm.x86.avx512.mask.expand.v32i16"
        )
        lanes = builder.bitcast(mask_, _MASK)
        builder.store(builder.call(expand, [source, builder.load(out, align=2), lanes]), out, align=2)
        return context.get_dummy_value()

    return types.void(escapes, types.int64, types.uint32, symbols, types.int64), generate


@intrinsic
def _count(typing, mask):
    """How many bits are set."""

    def generate(context, builder, signature, values):
        return builder.zext(builder.ctpop(values[0]), ir.IntType(64))

    return types.int64(types.uint32), generate
