"""`apply` and `cp` of its target by turns, in one process: the work of either without its start-up.

    python -m tests.bench.beside_cp TARGET REFERENCE SCRATCH

prints [apply's seconds, cp's seconds] for each turn as JSON. By turns and at once after the last output's removal,
because a virtual machine gives pages back to its host soon after they are free, and takes several times as long for the
next file where it has to ask for them again: what starts a second later would be measured with other pages.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import deltareg
from tests.bench.peers import copy_directory

__all__ = ["main"]

_TURNS = 9


def main(arguments: list[str]) -> int:
    """Apply the delta `arguments[1]` at weight 1 and copy the target by turns; the first turn warms the caches."""
    target, reference, scratch = Path(arguments[0]), arguments[1], Path(arguments[2])
    registry = deltareg.Registry()
    turns: list[tuple[float, float]] = []
    for number in range(_TURNS):
        _, copied = copy_directory(target, scratch, repeats=1)
        out = scratch / f"turn-{number}"
        report = deltareg.apply(target, {reference: 1.0}, registry, out, threads=2)
        shutil.rmtree(out)
        turns.append((report.seconds - report.load_seconds - report.sync_seconds, copied))
    print(json.dumps(turns[1:]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
