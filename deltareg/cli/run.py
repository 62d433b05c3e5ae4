"""From a list of arguments to an exit status: every way in which a command can end."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from types import FrameType
from typing import TextIO

import typer
from typer.main import get_command

from deltareg.cli.app import app
from deltareg.errors import DeltaregError, DiskFull, UsageError

__all__ = ["run"]

PROGRAM = "deltareg"
_INTERRUPTED = 130
_ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def run(arguments: Sequence[str]) -> int:
    """Run one command line; return the exit status. Errors are told on stderr, with `--json` on stdout too."""
    _prepare_streams()
    try:
        return _run(arguments)
    finally:
        _settle_streams()


def _run(arguments: Sequence[str]) -> int:
    with _interrupts() as received:
        try:
            status = _invoke(list(arguments))
        except KeyboardInterrupt:
            status = _INTERRUPTED
        except Exception as error:
            return _tell(_as_deltareg_error(error), arguments)
        if status == _INTERRUPTED:
            print("interrupted", file=sys.stderr)
            return 128 + received[0] if received else status
    return status


def _invoke(arguments: list[str]) -> int:
    try:
        # Not standalone: typer would print errors of usage in a form of its own.
        outcome = get_command(app).main(args=arguments, prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        outcome = _stdout_closed()
    except SystemExit as leaving:
        # typer ends so where whoever read the help has gone.
        outcome = _stdout_closed() if leaving.code == 1 else leaving.code
    return outcome if isinstance(outcome, int) else 0


def _stdout_closed() -> int:
    """Whoever read stdout has had enough, as `head` has. That is no failure, and nothing more is to be said."""
    from deltareg.cli.output import drop_stdout

    drop_stdout()
    return 0


def _as_deltareg_error(error: Exception) -> DeltaregError:
    if isinstance(error, DeltaregError):
        return error
    if isinstance(error, typer.Abort):
        return UsageError("input ended before the command had what it asked for")
    if isinstance(error, typer.TyperException):
        return _usage_error(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return DiskFull("the disk is full", cause=str(error), hint="free some space and run this again")
    return DeltaregError(
        f"unexpected {type(error).__name__}: {error}",
        hint="this is a fault of deltareg; to see where it arose, run again with DELTAREG_TRACEBACK=1",
    )


def _usage_error(error: typer.TyperException) -> UsageError:
    message = " ".join(error.format_message().replace("Value error, ", "").split()).removesuffix(".")
    command: str = getattr(getattr(error, "ctx", None), "command_path", PROGRAM)
    return UsageError(message[:1].lower() + message[1:], hint=f"{command} --help")


def _tell(error: DeltaregError, arguments: Sequence[str]) -> int:
    from deltareg.cli.output import print_error

    if os.environ.get("DELTAREG_TRACEBACK") == "1":
        traceback.print_exc()
    print_error(error, as_json=_wants_json(arguments) and _tells_programs())
    return error.exit_code


def _wants_json(arguments: Sequence[str]) -> bool:
    # Looked up by hand: errors of usage arise before the options are known.
    words = list(arguments)
    return "--json" in words[: words.index("--") if "--" in words else None]


def _tells_programs() -> bool:
    """Whether this process is the one whose stdout is read: of several that torchrun has started the first alone is."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


def _settle_streams() -> None:
    """Drop what a stream still holds and cannot write: Python would try again at its end, and end with status 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)


def _prepare_streams() -> None:
    """Let no stream fail: one that was closed swallows everything, what cannot be encoded is shown as an escape."""
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def _interrupts() -> Generator[list[int]]:
    """Let the signals that ask a process to end raise KeyboardInterrupt; gives the list of those that came.

    The first one counts. Until the process has cleaned up, more of them change nothing: a terminal and a parent may
    both send one.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if not received:
            received.append(number)
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    # Ignored ones stay ignored: that is what nohup asks for.
    before = {number: signal.getsignal(number) for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, handle)
    try:
        yield received
    finally:
        for number, handler in before.items():
            # Once one has come, the process is ending: a second one must not cut short how it does.
            signal.signal(number, signal.SIG_IGN if received else handler)
