from __future__ import annotations

import random
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from deltareg.checkpoint.upload import Upload, Uploads
from deltareg.errors import DiskFull
from deltareg.threads import in_order
from tests import disks
from tests.deltas import noise


class Goal:
    """What was sent, and from how many threads at a time."""

    def __init__(self, size: int, uploads: Uploads, *, slow: bool = False) -> None:
        self.data = bytearray()
        self.upload = Upload("object", size, self.send)
        self.uploads = uploads
        self._slow = slow
        self._one = threading.Lock()

    def send(self, piece: bytes) -> None:
        assert self._one.acquire(blocking=False), "two threads send"
        if self._slow:
            time.sleep(0.001)
        self.data += piece
        self._one.release()


def pieces_of(data: bytes, seed: int) -> list[tuple[int, bytes]]:
    """`data` cut at random places."""
    chance = random.Random(seed)
    cuts = sorted({0, *chance.sample(range(1, len(data)), 60)})
    return [(start, data[start:end]) for start, end in zip(cuts, [*cuts[1:], len(data)], strict=True)]


@pytest.mark.parametrize("memory", [0, 2_000, 10**6])
def test_pieces_in_any_order_are_sent_in_theirs(memory: int) -> None:
    data = noise(50_000)
    for seed in range(20):
        uploads = Uploads(memory)
        goal = Goal(len(data), uploads)
        pieces = pieces_of(data, seed)
        random.Random(seed).shuffle(pieces)
        for start, piece in pieces:
            uploads.give(goal.upload, start, piece)
        assert goal.data == data
        assert goal.upload.sent == len(data)
        uploads.close()


@pytest.mark.parametrize("memory", [0, 5_000, 10**6])
def test_many_threads_fill_several_objects(memory: int) -> None:
    uploads = Uploads(memory)
    goals = [Goal(50_000, uploads, slow=True) for _ in range(3)]
    data = [noise(50_000, seed) for seed in range(3)]
    work = [(goal, *piece) for number, goal in enumerate(goals) for piece in pieces_of(data[number], number)]
    random.Random(0).shuffle(work)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: uploads.give(one[0].upload, one[1], one[2]), work))
    assert [bytes(goal.data) for goal in goals] == data
    uploads.close()


def test_pieces_that_are_nearly_in_order_need_no_disk() -> None:
    data = noise(200_000)
    uploads = Uploads(memory=8_000)
    goal = Goal(len(data), uploads, slow=True)
    tasks = [
        partial(uploads.give, goal.upload, start, data[start : start + 1_000]) for start in range(0, len(data), 1_000)
    ]
    for _ in in_order(tasks, 4):  # eight are begun at most
        pass
    assert goal.data == data
    assert uploads.spooled == 0
    uploads.close()


def test_those_who_are_ahead_wait_for_a_slow_network() -> None:
    network = threading.Event()
    sent = bytearray()
    uploads = Uploads(memory=1_000)

    def send(piece: bytes) -> None:
        network.wait(10)
        sent.extend(piece)

    upload = Upload("object", 4_000, send)
    with ThreadPoolExecutor(4) as pool:
        given = [pool.submit(uploads.give, upload, start, noise(1_000, start)) for start in range(0, 4_000, 1_000)]
        time.sleep(0.1)
        assert sum(future.done() for future in given) == 1
        network.set()
    assert sent == b"".join(noise(1_000, start) for start in range(0, 4_000, 1_000))
    assert uploads.spooled == 0


def test_room_on_disk_is_used_again() -> None:
    uploads = Uploads(memory=0)
    data = noise(100_000)
    goal = Goal(len(data), uploads)
    for start in range(0, len(data), 2_000):  # each pair the wrong way round
        for offset in (start + 1_000, start):
            uploads.give(goal.upload, offset, data[offset : offset + 1_000])
    assert goal.data == data
    assert uploads.spooled == 1_000
    uploads.close()


def test_what_waits_is_a_copy() -> None:
    uploads = Uploads()
    goal = Goal(4, uploads)
    buffer = bytearray(b"cd")
    uploads.give(goal.upload, 2, buffer)
    buffer[:] = b"ab"
    uploads.give(goal.upload, 0, buffer)
    assert goal.data == b"abcd"


def test_piece_that_comes_twice_is_refused() -> None:
    uploads = Uploads()
    goal = Goal(6, uploads)
    uploads.give(goal.upload, 0, b"ab")
    uploads.give(goal.upload, 4, b"ef")
    for start in (0, 4):
        with pytest.raises(ValueError, match="given twice"):
            uploads.give(goal.upload, start, b"xx")


def test_error_of_a_sender_reaches_those_who_wait() -> None:
    uploads = Uploads(memory=0)
    sending, waiting = threading.Event(), threading.Event()

    def fail(piece: bytes) -> None:
        sending.set()
        waiting.wait(10)
        time.sleep(0.05)
        raise RuntimeError("the network is gone")

    upload = Upload("object", 4, fail)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(uploads.give, upload, 0, b"ab")
        sending.wait(10)
        second = pool.submit(uploads.give, upload, 2, b"cd")
        waiting.set()
        for future in (first, second):
            with pytest.raises(RuntimeError, match="the network is gone"):
                future.result(10)
    with pytest.raises(RuntimeError, match="the network is gone"):
        uploads.give(upload, 2, b"cd")


def test_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with disks.small_disk(tmp_path / "small", 1024) as directory:
        monkeypatch.setattr(tempfile, "tempdir", str(directory))
        uploads = Uploads(memory=0)
        upload = Upload("object", 3 * 2**20, lambda piece: None)
        with pytest.raises(DiskFull, match="until it is their turn"):
            uploads.give(upload, 1, bytes(2 * 2**20))
        uploads.close()
        assert list(directory.iterdir()) == []
