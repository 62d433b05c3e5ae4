from __future__ import annotations

import numpy as np

from deltareg.codec.memory import Recycled, empty, frame_memory, part_memory


def test_what_was_given_back_is_given_again() -> None:
    memory = Recycled(1 << 20)
    first = memory.copy(np.arange(1000, dtype=np.uint16))
    memory.give_back(first)
    second = memory.copy(np.arange(500, dtype=np.uint32))
    assert np.shares_memory(first, second)
    assert np.array_equal(second, np.arange(500))
    assert not np.shares_memory(second, memory.copy(second))


def test_no_more_is_held_than_is_allowed() -> None:
    memory = Recycled(3000)
    arrays = [memory.copy(np.zeros(size, np.uint8)) for size in (1000, 1001, 1002, 1003)]
    for array in arrays:
        memory.give_back(array)
    again = [memory.copy(np.zeros(size, np.uint8)) for size in (1000, 1001, 1002, 1003)]
    assert [np.shares_memory(one, other) for one, other in zip(arrays, again, strict=True)] == [
        False,
        False,
        True,
        True,
    ]


def test_memory_of_a_part_is_given_to_the_next_part() -> None:
    with frame_memory():
        kept = empty(100, np.uint8)
        with part_memory():
            one = empty(1000, np.uint16)
        with part_memory():
            other = empty(2000, np.uint8)
        assert np.shares_memory(one, other)
        assert not np.shares_memory(one, kept)
