"""How every server of the tests is started, waited for and ended."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from glob import glob
from pathlib import Path

from tests.ci import unavailable

__all__ = ["Outage", "answers_http", "find", "keep", "scratch"]

_KEEPER = Path(__file__).with_name("keeper.py")
_PATIENCE = 60.0
_TRIES = 3


# Runs a program again whenever it has ended, but not while there is a file `stopped`.
_AGAIN = """while :; do
    while [ -e stopped ]; do sleep 0.05; done
    "$@" & echo $! >pid.part; mv pid.part pid
    wait $!
done"""


class Outage:
    """Lets a server crash, and come back with what it had. The server runs in `directory`, as `again` has it run."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @staticmethod
    def again(command: Sequence[str | Path]) -> list[str | Path]:
        """The command that runs a server anew whenever it has crashed. It is ended by SIGKILL."""
        return ["sh", "-c", _AGAIN, "again", *command]

    def begin(self) -> None:
        """Kill the server. It stays away until `end`."""
        (self._directory / "stopped").touch()
        os.kill(int((self._directory / "pid").read_text()), signal.SIGKILL)

    def end(self) -> None:
        """Let the server start."""
        (self._directory / "stopped").unlink()


def find(program: str, package: str) -> Path:
    """The path of a program of Debian's `package`, named as on PATH or by a pattern. The test is skipped without it."""
    if "/" in program:
        found = max(glob(program), default=None)
    else:
        found = shutil.which(program) or shutil.which(program, path="/usr/sbin")
    if found is None:
        unavailable(f"{Path(program).name} is not on this machine (Debian: apt-get install {package})")
    return Path(found)


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A directory for one server, which any user may enter: pytest's own directories nobody else may."""
    directory = Path(tempfile.mkdtemp(prefix=f"deltareg-{name}-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def keep(
    directory: Path,
    command: Callable[[list[int]], Sequence[str | Path]],
    ready: Callable[[list[int]], bool],
    *,
    ports: int = 1,
    ending: str = "SIGTERM",
) -> Iterator[list[int]]:
    """Run a server as long as the body runs; gives the ports that it got once it is `ready`.

    It has `directory` as its HOME and its working directory, writes what it says to `directory/log`, and is told by the
    signal `ending` to stop. When this process is killed, the server ends and `directory` is removed.
    Raises RuntimeError with the end of the log if the server does not get ready.
    """
    log = directory / "log"
    for _ in range(_TRIES):  # another process may take a port that was free
        taken = _free_ports(ports)
        with _kept(directory, ending, command(taken)) as keeper:
            if _wait(keeper, ready, taken):
                yield taken
                return
    raise RuntimeError(f"the server does not start: {log.read_text(errors='replace')[-2000:]}")


def answers_http(url: str) -> bool:
    """Whether a server answers, if only that it does not know us."""
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError as error:
        error.close()
    except OSError:
        return False
    return True


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def _kept(directory: Path, ending: str, command: Sequence[str | Path]) -> Iterator[subprocess.Popen[bytes]]:
    with (directory / "log").open("wb") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-S", "-E", _KEEPER, directory, ending, *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=directory,
            env={**os.environ, "HOME": str(directory)},
            start_new_session=True,  # Ctrl-C is for pytest
        )
    try:
        yield keeper
    finally:
        with suppress(BrokenPipeError):  # the server has ended by itself
            keeper.communicate(b"x")  # a byte, not the end of the pipe: this process still lives
        keeper.wait()


def _wait(keeper: subprocess.Popen[bytes], ready: Callable[[list[int]], bool], ports: list[int]) -> bool:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end and keeper.poll() is None:
        if ready(ports):
            return keeper.poll() is None
        time.sleep(0.05)
    return False
