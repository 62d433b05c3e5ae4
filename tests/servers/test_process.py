"""Servers end with the tests that started them, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers.process import find, keep, scratch

ROOT = Path(__file__).resolve().parents[2]

# A server that has a child in a session of its own, and that heeds no signal that can be ignored.
STUBBORN = """
import os, pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
pathlib.Path("ready.part").write_text(f"{os.getpid()} {child.pid}")
os.rename("ready.part", "ready")
time.sleep(1000)
"""

# What pytest is to a server: it starts it, tells where, and goes on.
TESTS = f"""
import sys, time
from tests.servers.process import keep, scratch
with scratch("test") as directory:
    command = [sys.executable, "-c", {STUBBORN!r}]
    with keep(directory, lambda ports: command, lambda ports: (directory / "ready").exists(), ending="SIGUSR1"):
        print(directory, (directory / "ready").read_text(), flush=True)
        time.sleep(1000)
"""


def wait_for(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_server_and_its_children_die_with_killed_tests(number: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", TESTS], stdout=subprocess.PIPE, text=True, env=environment) as tests:
        assert tests.stdout is not None
        directory, *told = tests.stdout.readline().split()
        processes = [int(process) for process in told]
        assert [is_running(process) for process in processes] == [True, True]
        tests.send_signal(number)
    wait_for(lambda: not any(is_running(process) for process in processes))
    wait_for(lambda: not Path(directory).exists())


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
def test_server_ends_with_the_body_even_when_that_fails() -> None:
    processes: list[int] = []
    with pytest.raises(KeyError), scratch("test") as directory:
        ready = directory / "ready"
        command = [sys.executable, "-c", STUBBORN]
        with keep(directory, lambda ports: command, lambda ports: ready.exists(), ending="SIGUSR1"):
            processes = [int(process) for process in ready.read_text().split()]
            raise KeyError
    assert len(processes) == 2
    assert not any(is_running(process) for process in processes)
    assert not directory.exists()


def test_server_that_does_not_start_is_told_of_with_its_log() -> None:
    with (
        scratch("test") as directory,
        pytest.raises(RuntimeError, match="no such option"),
        keep(directory, lambda ports: ["sh", "-c", "echo no such option; exit 3"], lambda ports: False),
    ):
        pass


def test_missing_program_skips_and_in_ci_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install nothing"):
        find("no-such-program", "nothing")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="apt-get install nothing"):
        find("/no/such/*/program", "nothing")
