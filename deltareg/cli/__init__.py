"""The command line: each command parses its arguments, calls one public function and prints what it returns."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Sequence

__all__ = ["main"]

# A command makes few cycles and ends soon: with Python's own threshold of 700 objects, collections would take much of
# the time of a check of 90,000 tensors.
_COLLECT_AFTER = 10_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments`, by default those of the process, name; return the exit status."""
    gc.set_threshold(_COLLECT_AFTER)
    # What is left then goes with the process: looking through all of it for cycles takes up to half a second.
    atexit.register(gc.freeze)
    try:
        # Not at the top: an interrupt while modules load has to end as quietly as a later one.
        from deltareg.cli.run import run

        return run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
