"""The cache of compiled loops: damaged, or on a full disk, it costs time and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.disks import fill, small_disk

_PROGRAM = """
import numpy as np
from deltareg.codec import kernels
out = np.empty(2, np.float64)
kernels.widen_all(np.array([0x3F80, 0xC000], np.uint16), out)
assert out.tolist() == [1.0, -2.0]
print(sum(kernels.widen_all.stats.cache_hits.values()))
"""


def hits(cache: Path) -> int:
    """Run a loop in a new process; how often it came from the cache."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run([sys.executable, "-c", _PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the loop. Read only."""
    cache = tmp_path_factory.mktemp("cache")
    assert (hits(cache), hits(cache)) == (0, 1)
    return cache


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("kept", [0, 7, 100])
def test_damaged_cache_is_made_anew(tmp_path: Path, sound: Path, suffix: str, kept: int) -> None:
    cache = Path(shutil.copytree(sound, tmp_path / "cache"))
    files = list(cache.rglob(f"*{suffix}"))
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[:kept])
    assert (hits(cache), hits(cache)) == (0, 1)


def test_copied_cache_is_as_good_as_the_first(tmp_path: Path, sound: Path) -> None:
    """Otherwise the caches above would be made anew without any damage."""
    assert hits(Path(shutil.copytree(sound, tmp_path / "cache"))) == 1


def test_full_disk_under_the_cache_is_no_fault(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 256) as disk:
        fill(disk)
        assert hits(disk) == 0
