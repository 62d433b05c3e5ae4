"""Disks that are small or read-only. Mounting takes root; without it the tests that need one are skipped.

In CI (`CI=true`) root that cannot mount is a failure: nobody would notice that these tests are never run.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.ci import unavailable

__all__ = ["fill", "read_only", "small_disk"]


@contextmanager
def small_disk(path: Path, kibibytes: int) -> Iterator[Path]:
    """An empty disk of that size, mounted at `path`."""
    path.mkdir(parents=True, exist_ok=True)
    _mount(path, "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


@contextmanager
def read_only(path: Path) -> Iterator[Path]:
    """The directory `path`, where nobody may write, root neither."""
    _mount(path, "--bind", str(path))
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def fill(path: Path) -> Path:
    """Take all the space that a disk has left; return the file that holds it."""
    ballast = path / "ballast"
    with ballast.open("wb", buffering=0) as file:
        block = b"\1" * 65536
        while block:
            try:
                file.write(block)
            except OSError:
                block = block[: len(block) // 2]
    return ballast


def _mount(path: Path, *arguments: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a disk takes root")
    done = subprocess.run(["mount", *arguments, path], capture_output=True, text=True)
    if done.returncode != 0:
        unavailable(f"disks cannot be mounted here: {done.stderr.strip()}")
