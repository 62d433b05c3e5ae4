"""The lock excludes processes and threads, and ends with its holder."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deltareg.errors import Busy
from deltareg.store import FileLock

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from pathlib import Path
from deltareg.store import FileLock
with FileLock(Path(sys.argv[1])).exclusive():
    print("held", flush=True)
    time.sleep(60)
"""


def test_lock_of_another_process_is_waited_for_and_then_busy(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        begun = time.monotonic()
        with pytest.raises(Busy, match="has held"), FileLock(path, wait=0.2).exclusive():
            pass
        assert time.monotonic() - begun >= 0.2
        with pytest.raises(Busy), FileLock(path, wait=0).shared():
            pass
        process.kill()
        process.wait()
        with FileLock(path, wait=5).exclusive():
            pass


def test_shared_holders_share_and_keep_the_exclusive_one_out(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock", wait=0.05)
    with lock.shared(), lock.shared(), pytest.raises(Busy), lock.exclusive():
        pass
    with lock.exclusive():
        pass


def test_threads_exclude_each_other(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    count = 0

    def add(_: int) -> None:
        nonlocal count
        with lock.exclusive():
            seen = count
            time.sleep(0.001)
            count = seen + 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(20)))
    assert count == 20
