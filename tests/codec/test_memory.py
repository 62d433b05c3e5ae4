from __future__ import annotations

import numpy as np

from deltareg.codec import Array
from deltareg.codec.memory import Recycled, empty, frame_memory, part_memory

MIB = 1 << 20


def _copy(memory: Recycled, nbytes: int) -> Array:
    found = memory.copy(np.zeros(nbytes, np.uint8))
    assert found is not None
    return found


def test_what_was_given_back_is_given_again() -> None:
    memory = Recycled(8 * MIB)
    first = memory.copy(np.arange(MIB, dtype=np.uint16))
    assert first is not None
    memory.give_back(first)
    second = memory.copy(np.arange(MIB // 2, dtype=np.uint32))
    assert second is not None
    assert np.shares_memory(first, second)
    assert np.array_equal(second, np.arange(MIB // 2))
    assert not np.shares_memory(second, _copy(memory, 2 * MIB))


def test_no_more_is_held_than_is_allowed() -> None:
    memory = Recycled(3 * MIB)
    arrays = [_copy(memory, MIB) for _ in range(3)]
    assert memory.copy(np.zeros(1, np.uint8)) is None
    memory.give_back(arrays.pop())
    assert memory.copy(np.zeros(MIB + 1, np.uint8)) is None
    assert memory.copy(np.zeros(MIB, np.uint8)) is not None


def test_what_waits_makes_room_for_what_is_asked_for() -> None:
    memory = Recycled(3 * MIB)
    for array in [_copy(memory, MIB) for _ in range(3)]:
        memory.give_back(array)
    large = _copy(memory, 2 * MIB + 1)
    assert memory.copy(np.zeros(MIB, np.uint8)) is None
    memory.give_back(large)
    assert len([_copy(memory, MIB) for _ in range(3)]) == 3


def test_small_arrays_are_counted_and_given_up_at_once() -> None:
    memory = Recycled(100)
    array = _copy(memory, 100)
    assert memory.copy(np.zeros(1, np.uint8)) is None
    memory.give_back(array)
    assert memory.copy(np.zeros(99, np.uint8)) is not None


def test_memory_of_a_part_is_given_to_the_next_part() -> None:
    with frame_memory():
        kept = empty(100, np.uint8)
        with part_memory():
            one = empty(1000, np.uint16)
        with part_memory():
            other = empty(2000, np.uint8)
        assert np.shares_memory(one, other)
        assert not np.shares_memory(one, kept)
