"""`apply` and `cp` of its target by turns, in one process: the work of either without its start-up.

    python -m tests.bench.beside_cp TARGET SCRATCH REFERENCE[=WEIGHT] … [--method METHOD] [--param NAME=VALUE] …

prints [apply's seconds, cp's seconds] for each turn as JSON. By turns and at once after the last output's removal,
because a virtual machine gives pages back to its host soon after they are free, and takes several times as long for the
next file where it has to ask for them again: what starts a second later would be measured with other pages.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import deltareg
from deltareg.cli.schedules import parse_parameters, parse_weights
from tests.bench.peers import copy_directory

__all__ = ["main"]

_TURNS = 9


def main(arguments: list[str]) -> int:
    """Apply the deltas and copy the target by turns; the first turn warms the caches."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("deltas", nargs="+")
    parser.add_argument("--method", default="linear")
    parser.add_argument("--param", action="append", default=[])
    asked = parser.parse_args(arguments)
    registry = deltareg.Registry()
    weighted = parse_weights(asked.deltas, [])
    parameters = parse_parameters(asked.method, asked.param)
    turns: list[tuple[float, float]] = []
    for number in range(_TURNS):
        _, copied = copy_directory(asked.target, asked.scratch, repeats=1)
        out = asked.scratch / f"turn-{number}"
        report = deltareg.apply(
            asked.target, weighted, registry, out, method=asked.method, parameters=parameters, threads=2
        )
        shutil.rmtree(out)
        turns.append((report.seconds - report.load_seconds - report.sync_seconds, copied))
    print(json.dumps(turns[1:]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
