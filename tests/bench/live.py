"""Deltas put on a model in memory, timed in one process.

    python -m tests.bench.live CHECKPOINT REFERENCE

prints the seconds of each turn as JSON. The first turn, in which the system hands out the memory for what is kept, is
printed too: users have it each time that they start.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors.torch import load_file

import deltareg

__all__ = ["main"]

_TURNS = 5


def main(arguments: list[str]) -> int:
    """Put the delta on and take it off, by turns."""
    model = {}
    for file in sorted(Path(arguments[0]).glob("*.safetensors")):
        model |= load_file(file)
    registry = deltareg.Registry()
    seconds: list[float] = []
    for _ in range(_TURNS):
        with deltareg.live(model, registry, threads=2) as loaded:
            seconds.append(loaded.apply(arguments[1], weight=0.5).seconds)
    print(json.dumps(seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
