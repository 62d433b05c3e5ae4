"""What reaches the terminal: nothing cut, nothing coloured that should not be, nothing that a stranger wrote raw."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from deltareg.cli.output import printable
from deltareg.cli.units import duration, parse_duration, shape, size, speed
from deltareg.errors import InvalidArgument
from tests.cli.program import Pair, Workplace

DELTA = "acme/search:1.0.0"
ESCAPE = "\x1b["


def in_terminal(workplace: Workplace, *arguments: str, **environment: str) -> str:
    """What a terminal of 40 columns gets to see of stdout and stderr."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "deltareg", *arguments]
    environment = {**workplace.environment, "TERM": "xterm-256color", "COLUMNS": "40", **environment}
    with subprocess.Popen(command, cwd=workplace.directory, env=environment, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        seen = bytearray()
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # Linux's way to say that the other end is closed
                break
            if not piece:
                break
            seen += piece
    os.close(ours)
    assert process.returncode in (0, 2), seen
    return seen.decode()


def test_progress_is_shown_on_a_terminal_only(workplace: Workplace, pair: Pair) -> None:
    arguments = ["diff", str(pair.base), str(pair.post), "--tag", DELTA]
    seen = in_terminal(workplace, *arguments, COLUMNS="100")
    assert re.search(r"diff .*KiB", seen)
    assert re.search(r"[kKMG]i?B/s", seen)
    assert "0:00:00" in seen
    done = workplace.execute(*arguments)
    assert (done.status, done.err) == (0, "")
    assert ESCAPE not in done.out


def test_a_narrow_terminal_cuts_nothing(stocked: Workplace) -> None:
    seen = in_terminal(stocked, "show", DELTA, "--tensors")
    digest = stocked.ok("show", DELTA, "--json").document("show")["digest"]
    assert digest in seen
    assert "model.layers.0.mlp.up_proj.weight" in seen


def test_colours_are_for_terminals_that_want_them(stocked: Workplace) -> None:
    assert ESCAPE in in_terminal(stocked, "list")
    assert f"{ESCAPE}1;31merror[DR0100]" in in_terminal(stocked, "push")
    assert ESCAPE not in in_terminal(stocked, "list", NO_COLOR="1")
    assert ESCAPE not in in_terminal(stocked, "push", NO_COLOR="1")
    assert ESCAPE not in stocked.execute("list").out


def test_what_a_stranger_wrote_cannot_steer_the_terminal(workplace: Workplace, pair: Pair) -> None:
    hostile = "nice\x1b]0;owned\x07\u202egnp.exe\r\nlicence: mit[red]x[/red]"
    workplace.ok("diff", pair.base, pair.post, "--tag", DELTA, "--description", hostile)
    shown = workplace.ok("show", DELTA).out
    assert r"nice\x1b]0;owned\x07\u202egnp.exe\r\nlicence: mit[red]x[/red]" in shown
    assert not {"\x1b", "\x07", "\u202e", "\r"} & set(shown)
    assert workplace.ok("show", DELTA, "--json").document("show")["config"]["description"] == hostile


def test_json_is_one_document_and_nothing_else(stocked: Workplace) -> None:
    done = stocked.execute("verify", DELTA, "--json")
    assert done.document("verify")["reproduced"] is None
    assert done.err.startswith("hint: ")
    assert done.out.isascii()


def test_printable_keeps_what_people_write() -> None:
    assert printable("Θ' = Θ + α·ΔΘ — 模型 é") == "Θ' = Θ + α·ΔΘ — 模型 é"
    assert printable("\x9b\ud800\u2028\u200b") == r"\x9b\ud800\u2028\u200b"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (45_438_976, "43.33 MiB"),
        (2**40, "1 TiB"),
        (2**70, "1.049e+06 PiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


def test_other_quantities() -> None:
    assert (duration(0.416), duration(200), duration(3 * 3600 + 60)) == ("0.42 s", "3 min 20 s", "3 h 1 min")
    assert (speed(3_000_000_000, 2), speed(5_000_000, 1)) == ("1.50 GB/s", "5.0 MB/s")
    assert (shape([]), shape([384, 1536])) == ("scalar", "384×1536")


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("90", 90), ("90s", 90), ("30m", 1800), ("1h30m", 5400), ("2d", 172800)]
)
def test_spans_of_time(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "1x", "-1h", "1.5h", "1m1h", "1 h", "٣s"])
def test_what_is_no_span_of_time(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_duration(text)
