"""The program of this checkout as a user has it: a `deltareg` on the PATH."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

__all__ = ["install"]

_ROOT = Path(__file__).resolve().parents[1]


def install(directory: Path) -> Path:
    """Put a `deltareg`, a `deltareg-registry` and a `python` that run this checkout into `directory`; return it."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = os.pathsep.join((str(_ROOT), str(_ROOT / "registry")))
    server = " -c 'from deltareg_registry.cli import main; main()'"
    for name, arguments in (("deltareg", " -m deltareg"), ("deltareg-registry", server), ("python", "")):
        path = directory / name
        run = f'PYTHONPATH={shlex.quote(paths)} exec {shlex.quote(sys.executable)}{arguments} "$@"'
        path.write_text(f"#!/bin/sh\n{run}\n")
        path.chmod(0o755)
    return directory
