"""Many processes at one store, and processes that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deltareg.names import parse_reference
from deltareg.store import Store
from tests.deltas import publish

ROOT = Path(__file__).resolve().parents[2]

PUBLISH = """
import sys
from pathlib import Path
from deltareg.errors import VersionExists
from deltareg.names import parse_reference
from deltareg.store import Store
from tests.deltas import add_delta
root, content, *names = sys.argv[1:]
store = Store(Path(root))
manifest = add_delta(store, [content.encode()])
print("ready", flush=True)
sys.stdin.readline()
for name in names:
    try:
        print(store.publish(parse_reference(name), manifest), flush=True)
    except VersionExists:
        print("VersionExists", flush=True)
"""


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def race(store: Store, *runs: list[str]) -> list[list[str]]:
    """Let processes publish at the same moment; return what each printed."""
    processes = [start(PUBLISH, str(store.root), *run) for run in runs]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    printed = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(runs)
    return printed


def test_of_two_processes_with_other_bytes_exactly_one_publishes(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    versions = [f"acme/search:1.0.{number}" for number in range(10)]
    first, second = race(store, ["one", *versions], ["two", *versions])
    for version, one, two in zip(versions, first, second, strict=True):
        assert (one == "VersionExists") != (two == "VersionExists")
        assert store.resolve(parse_reference(version)) in (one, two)
    assert store.fsck().ok


def test_two_processes_with_the_same_bytes_both_publish(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first, second = race(store, ["same", "acme/search:1.0.0"], ["same", "acme/search:1.0.0"])
    assert first == second == [store.resolve(parse_reference("acme/search:1.0.0"))]


def test_no_version_is_lost_where_four_processes_publish_twenty(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    versions = [[f"acme/model-{process}:1.0.{number}" for number in range(5)] for process in range(4)]
    race(store, *([str(process), *names] for process, names in enumerate(versions)))
    assert [str(entry.reference) for entry in store.entries()] == [name for names in versions for name in names]
    assert store.fsck().ok


def test_two_processes_make_one_store(tmp_path: Path) -> None:
    for attempt in range(3):
        root = tmp_path / str(attempt)
        processes = [start(PUBLISH, str(root), "x", f"acme/search:1.0.{number}") for number in range(2)]
        for process in processes:
            process.communicate("\n")
        assert [process.returncode for process in processes] == [0, 0]
        assert len(Store(root).entries()) == 2


@pytest.mark.parametrize("milliseconds", [0, 3, 10, 30, 80])
def test_killed_publisher_leaves_a_sound_store(tmp_path: Path, milliseconds: int) -> None:
    program = """
import sys
from pathlib import Path
from deltareg.store import Store
from tests.deltas import noise, publish
store = Store(Path(sys.argv[1]))
for number in range(10**6):
    publish(store, f"acme/search:1.0.{number}", [noise(50_000, number)])
    print(number, flush=True)
"""
    store = Store(tmp_path / "store")
    with start(program, str(store.root)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(milliseconds / 1000)
        process.send_signal(signal.SIGKILL)
        told = [0, *(int(line) for line in process.stdout if line.endswith("\n"))]
    versions = {str(entry.reference.tag) for entry in store.entries()}
    assert versions >= {f"1.0.{number}" for number in told}
    assert store.fsck().ok
    publish(store, "acme/search:2.0.0")
    report = store.gc(0)
    assert store.fsck().unreferenced == 0, report
    assert list(store.tmp_path.iterdir()) == []


def test_collecting_all_the_time_takes_nothing_from_publishers(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from deltareg.names import parse_reference
from deltareg.store import Store
from tests.deltas import add_delta
store = Store(Path(sys.argv[1]))
for number in range(20):
    reference = parse_reference(f"acme/model-{sys.argv[2]}:1.0.{number}")
    with store.hold():
        # The same packs come and go: they are old, unneeded and wanted again.
        store.publish(reference, add_delta(store, [bytes([number % 3]), sys.argv[2].encode()]))
    if number % 2:
        store.remove(reference)
"""
    store = Store(tmp_path / "store")
    publishers = [start(program, str(store.root), str(number)) for number in range(2)]
    collected = 0
    while any(process.poll() is None for process in publishers):
        litter = store.path(store.put(b"litter"))
        os.utime(litter, (1, 1))
        collected += store.gc(-60).blobs
        time.sleep(0.005)
    for process in publishers:
        process.communicate()
    assert [process.returncode for process in publishers] == [0, 0]
    assert collected > 0
    assert len(store.entries()) == 20
    assert store.fsck().ok


YANK = """
import sys
from pathlib import Path
from deltareg.names import parse_reference
from deltareg.store import Store
from tests.deltas import publish
root, own = sys.argv[1:]
store = Store(Path(root))
print("ready", flush=True)
sys.stdin.readline()
for number in range(12):
    if own == "publisher":
        publish(store, f"acme/search:2.0.{number}", [own.encode()])
    else:
        store.yank(parse_reference(f"acme/search:1.0.{number}"), own)
        store.yank(parse_reference(f"acme/{own}:1.0.{number}"), str(number))
"""


def test_two_that_yank_and_one_that_publishes_lose_nothing_of_one_another(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for name in ("search", "first", "second"):
        for number in range(12):
            publish(store, f"acme/{name}:1.0.{number}")
    processes = [start(YANK, str(store.root), own) for own in ("first", "second", "publisher")]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0] * 3
    yanked = {str(entry.reference): entry.yanked for entry in store.entries()}
    for number in range(12):
        assert yanked[f"acme/search:1.0.{number}"] in ("first", "second")
        assert yanked[f"acme/first:1.0.{number}"] == yanked[f"acme/second:1.0.{number}"] == str(number)
        assert yanked[f"acme/search:2.0.{number}"] is None
    assert len(yanked) == 48
    assert store.entry(parse_reference("acme/search")).reference.tag == "2.0.11"
    assert store.fsck().ok
